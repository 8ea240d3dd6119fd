"""What is different between two worlds, nodes being known by name: who joined, left, moved, and what was set anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from worldlm.topology.errors import join_names, suggest
from worldlm.topology.settings import FOR_CHILDREN, KINDS_OF_PRIVACY, Privacy, Settings
from worldlm.topology.tree import Topology

Described: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Nodes by name, parents first: `parent` (None at the root), and what holds there by dotted name."""
Setting: TypeAlias = tuple[str, Any, Any]
"""Dotted name of a setting, its old value and its new one; None where it is not set."""

_FOR_DATA = ("num_local_steps", "batch_size", "optimizer_state")


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What became of a world's nodes; false where nothing changed."""

    joined: Mapping[str, str] = field(default_factory=dict)
    """New nodes, parents first, and the old node that each starts from."""
    left: Mapping[str, str | None] = field(default_factory=dict)
    """Nodes that are gone, and whose children they were."""
    moved: Mapping[str, tuple[str | None, str | None]] = field(default_factory=dict)
    """Nodes that have another parent: the old one and the new one, None above the root."""
    settings: Mapping[str, tuple[Setting, ...]] = field(default_factory=dict)
    """What was set anew at nodes that stayed; their corpus and weight are among it."""
    loosened: Mapping[str, tuple[Setting, ...]] = field(default_factory=dict)
    """The part of `settings` that asks for less privacy than before."""
    begun: Mapping[str, str] = field(default_factory=dict)
    """Nodes that stayed and ask for privacy from now on, and for which kind; for both, the first."""
    opened: Mapping[str, tuple[Setting, ...]] = field(default_factory=dict)
    """The part of `settings` that lets more residuals out or in than before."""
    dissolved: tuple[str, ...] = ()
    """Nodes that left, whose privacy held for children that stayed, together, as one."""
    bared: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)
    """Nodes that read a text anew without a kind of privacy that it was read under: the text, the kind, and where."""
    disclosed: str | None = None
    """The old root, where a new root above it starts from it although it is private now."""

    def __bool__(self) -> bool:
        return bool(self.joined or self.left or self.moved or self.settings)

    @property
    def parted(self) -> list[tuple[str, str]]:
        """Children that left or moved, and their former parent, where that is still there."""
        former = {**self.left, **{name: old for name, (old, _) in self.moved.items()}}
        return [(name, old) for name, old in former.items() if old is not None and old not in self.left]

    @property
    def new_texts(self) -> dict[str, str]:
        """Nodes that stayed and now read another corpus, and which."""
        told = ((name, setting) for name, settings in self.settings.items() for setting in settings)
        return {name: new for name, (key, _, new) in told if key == "corpus" and new is not None}

    def lines(self) -> Iterator[str]:
        """Yield what changed, a line each; nodes with which the same happened share one."""
        for source, names in _grouped(self.joined).items():
            yield f"joined: {join_names(names)} (from {source})"
        if self.left:
            yield f"left: {join_names(self.left)}"
        for (old, new), names in _grouped(self.moved).items():
            yield f"moved: {join_names(names)} from {old or 'the top'} to {new or 'the top'}"
        told = {name: ", ".join(map(_shown, settings)) for name, settings in self.settings.items()}
        for what, names in _grouped(told).items():
            yield f"changed: {join_names(names)} {what}"
        for corpus, names in _grouped(self.new_texts).items():
            yield f"{join_names(names)}: reads {corpus} from its beginning"

    def warnings(self) -> Iterator[str]:
        """Yield what nobody should overlook, a line each."""
        told = {name: ", ".join(map(_shown, settings)) for name, settings in self.loosened.items()}
        for what, names in _grouped(told).items():
            yield f"privacy is loosened at {join_names(names)}: {what}; what was spent so far stays in the ledger"
        told = {name: ", ".join(map(_shown, settings)) for name, settings in self.opened.items()}
        for what, names in _grouped(told).items():
            yield f"rules on residuals are loosened at {join_names(names)}: {what}"
        for name in self.dissolved:
            yield f"{name} is gone, whose privacy held for all below it as one: what is left is that of every node"
        for (corpus, kind, where), names in _grouped(self.bared).items():
            yield f"{join_names(names)} reads {corpus} without the {kind} that it was read under at {where}"
        for kind, names in _grouped(self.begun).items():
            yield f"{kind} begins at {join_names(names)}: no epsilon covers what was learnt there before"
        if self.disclosed is not None:
            told_of = (
                f"what is above {self.disclosed} starts from its model, which no noise hides: all that it learnt so "
            )
            yield told_of + f"far is known there; its privacy holds for what {self.disclosed} sends from now on"
        for name in self.joined:
            if near := suggest(name, self.left):
                told_of = f"{name} is a new node{near} A node is known by its name: what the old one learnt is dropped"
                yield told_of

    def record(self) -> dict[str, Any]:
        """Return all of it as plain values for JSON."""
        return {
            "joined": dict(self.joined),
            "left": list(self.left),
            "moved": {name: list(both) for name, both in self.moved.items()},
            "changed": {name: {key: [old, new] for key, old, new in one} for name, one in self.settings.items()},
        }


def described(topology: Topology) -> dict[str, dict[str, Any]]:
    """Return the nodes of a topology as plain values, parents first.

    Settings that are at their default, or have no effect at the node, are left out.
    """
    parents = {child.name: node.name for node in topology.nodes.values() for child in node.children}
    found: dict[str, dict[str, Any]] = {}
    for name, node in topology.nodes.items():
        own = dict(_flat({"corpus": node.corpus, "weight": node.weight, **asdict(node.settings)}))
        vain = (*(FOR_CHILDREN if node.is_leaf else ()), *(() if node.holds_data else _FOR_DATA))
        told = {key: one for key, one in own.items() if one != _DEFAULTS.get(key) and key.split(".")[0] not in vain}
        found[name] = {"parent": parents.get(name), **told}
    return found


def compare(old: Described, new: Described) -> Changes:
    """Find what became of the nodes of an old world in a new one; the order of siblings means nothing.

    A new node starts from its parent if that was there, else from what its parent starts from; a new root from the old
    root, whose model is the whole old world's.
    """
    old_root, new_root = next(iter(old)), next(iter(new))
    sources: dict[str | None, str] = {None: old_root}
    for name, node in new.items():
        sources[name] = name if name in old else sources[node["parent"]]
    stayed = [name for name in new if name in old]
    parents = {name: (old[name]["parent"], new[name]["parent"]) for name in stayed}
    settings = {name: tuple(_changed(old[name], new[name])) for name in stayed}
    changed = [name for name in stayed if settings[name]]
    loosened = {name: tuple(_loosened(old[name], new[name], settings[name])) for name in changed}
    opened = {name: tuple(filter(_is_opened, settings[name])) for name in changed}
    left = {name: node["parent"] for name, node in old.items() if name not in new}
    held_together = {parents[name][0] for name in stayed} & {name for name in left if _privacy(old[name], "privacy")}
    return Changes(
        joined={name: sources[name] for name in new if name not in old},
        left=left,
        moved={name: both for name, both in parents.items() if both[0] != both[1]},
        settings={name: found for name, found in settings.items() if found},
        loosened={name: found for name, found in loosened.items() if found},
        opened={name: found for name, found in opened.items() if found},
        dissolved=tuple(name for name in left if name in held_together),
        bared=dict(_bared(old, new)),
        begun={name: kind for name in stayed for kind in reversed(KINDS_OF_PRIVACY) if _begins(old, new, name, kind)},
        disclosed=old_root if new_root not in old and _privacy(new.get(old_root, {}), "privacy") else None,
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield prefix + key, value


_DEFAULTS = dict(_flat(asdict(Settings())))


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Setting]:
    for key in dict.fromkeys((*old, *new)):
        before, after = (node.get(key, _DEFAULTS.get(key)) for node in (old, new))
        if key != "parent" and before != after:
            yield key, before, after


def _loosened(old: Mapping[str, Any], new: Mapping[str, Any], settings: Iterable[Setting]) -> Iterator[Setting]:
    for kind in KINDS_OF_PRIVACY:
        demand, now = _privacy(old, kind), _privacy(new, kind)
        fields = () if demand is None else asdict(demand) if now is None else demand.loosened_by(now)
        looser = {f"{kind}.{name}" for name in fields}
        yield from (setting for setting in settings if setting[0] in looser)


def _is_opened(setting: Setting) -> bool:
    """Whether a rule on residuals has become looser."""
    key, old, new = setting
    if key == "residuals.share":
        return bool(new)
    return key == "residuals.accept_from" and old is not None and (new is None or not set(new) <= set(old))


def _bared(old: Described, new: Described) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """Find who reads a text anew, and less privately than somebody did before."""
    private: dict[tuple[str, str], str] = {}
    for name, node in old.items():
        for kind in KINDS_OF_PRIVACY:
            if "corpus" in node and _privacy(node, kind) is not None:
                private.setdefault((str(node["corpus"]), kind), name)
    for name, node in new.items():
        corpus = str(node.get("corpus"))
        if corpus == str(old.get(name, {}).get("corpus")):
            continue
        for kind in KINDS_OF_PRIVACY:
            if (where := private.get((corpus, kind))) is not None and _privacy(node, kind) is None:
                yield name, (corpus, kind, where)


def _begins(old: Described, new: Described, name: str, kind: str) -> bool:
    return _privacy(old[name], kind) is None and _privacy(new[name], kind) is not None


def _privacy(node: Mapping[str, Any], kind: str) -> Privacy | None:
    own = {key.removeprefix(f"{kind}."): value for key, value in node.items() if key.startswith(f"{kind}.")}
    return Privacy(**own) if own else None


def _grouped(values: Mapping[str, Any]) -> dict[Any, list[str]]:
    """Return names by their value."""
    groups: dict[Any, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(value, []).append(name)
    return groups


def _shown(setting: Setting) -> str:
    key, old, new = setting
    return f"{key} {_value(old)} -> {_value(new)}"


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
