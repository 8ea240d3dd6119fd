"""The differences between two worlds: nodes that joined, left or moved, and changed settings. Names identify nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, TypeAlias

from worldlm.topology.errors import join_names, suggest
from worldlm.topology.settings import FOR_CHILDREN, KINDS_OF_PRIVACY, Privacy, PrivacyOfExamples, Settings
from worldlm.topology.tree import Topology

Described: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Node name -> its `parent` (None at the root) and its settings by dotted name; parents come first."""
Setting: TypeAlias = tuple[str, Any, Any]
"""Dotted name of a setting, its old value and its new value; None where it is not set."""

MAX_COMPARED = 20_000
"""Pairs of a new and a removed node whose names are compared for a warning; each takes some 20 microseconds."""

_FOR_DATA = ("num_local_steps", "batch_size", "optimizer_state")


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The changes from an old world to a new one; false if nothing changed."""

    joined: Mapping[str, str] = field(default_factory=dict)
    """New node -> the old node from whose model it starts; parents come first."""
    left: Mapping[str, str | None] = field(default_factory=dict)
    """Removed node -> its former parent."""
    moved: Mapping[str, tuple[str | None, str | None]] = field(default_factory=dict)
    """Node with a new parent -> (old parent, new parent); None stands above the root."""
    settings: Mapping[str, tuple[Setting, ...]] = field(default_factory=dict)
    """Node that stayed -> its changed settings, `corpus` and `weight` included."""
    loosened: Mapping[str, tuple[Setting, ...]] = field(default_factory=dict)
    """The part of `settings` that requires less privacy than before."""
    begun: Mapping[str, str] = field(default_factory=dict)
    """Node that stayed and becomes private -> the kind of privacy; the first of `KINDS_OF_PRIVACY` if both begin."""
    opened: Mapping[str, tuple[Setting, ...]] = field(default_factory=dict)
    """The part of `settings` that shares or accepts more residuals than before."""
    dissolved: tuple[str, ...] = ()
    """Removed private nodes whose children stayed: these children are no longer protected together, as one unit."""
    bared: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)
    """Node that starts to read a corpus with less privacy than before -> (corpus, kind of privacy, private reader)."""
    disclosed: str | None = None
    """The old root, if it is private now and a new root above it starts from its model."""

    def __bool__(self) -> bool:
        return bool(self.joined or self.left or self.moved or self.settings)

    @property
    def parted(self) -> list[tuple[str, str]]:
        """Pairs (child, former parent) for children that left or moved away from a parent that still exists."""
        former = {**self.left, **{name: old for name, (old, _) in self.moved.items()}}
        return [(name, old) for name, old in former.items() if old is not None and old not in self.left]

    @property
    def new_texts(self) -> dict[str, str]:
        """Node that stayed and reads another corpus -> the new corpus."""
        changed = ((name, setting) for name, settings in self.settings.items() for setting in settings)
        return {name: new for name, (key, _, new) in changed if key == "corpus" and new is not None}

    def lines(self) -> Iterator[str]:
        """Yield one line per change; nodes with the same change share a line."""
        for source, names in _grouped(self.joined).items():
            yield f"joined: {join_names(names)} (from {source})"
        if self.left:
            yield f"left: {join_names(self.left)}"
        for (old, new), names in _grouped(self.moved).items():
            yield f"moved: {join_names(names)} from {old or 'the top'} to {new or 'the top'}"
        changed = {name: ", ".join(map(_shown, settings)) for name, settings in self.settings.items()}
        for what, names in _grouped(changed).items():
            yield f"changed: {join_names(names)} {what}"
        for corpus, names in _grouped(self.new_texts).items():
            yield f"{join_names(names)}: starts to read {corpus} from its beginning"

    def warnings(self) -> Iterator[str]:
        """Yield one line per change that weakens privacy or discards a model."""
        loosened = {name: ", ".join(map(_shown, settings)) for name, settings in self.loosened.items()}
        for what, names in _grouped(loosened).items():
            yield f"privacy is loosened at {join_names(names)}: {what}; the ledger keeps the budget spent so far"
        opened = {name: ", ".join(map(_shown, settings)) for name, settings in self.opened.items()}
        for what, names in _grouped(opened).items():
            yield f"rules on residuals are loosened at {join_names(names)}: {what}"
        for name in self.dissolved:
            yield f"{name} was removed: its descendants are no longer protected together, only each node by itself"
        for (corpus, kind, where), names in _grouped(self.bared).items():
            yield f"{join_names(names)} reads {corpus} without {kind}, which {where} had when it read {corpus}"
        for kind, names in _grouped(self.begun).items():
            yield f"{kind} begins at {join_names(names)}: epsilon does not cover earlier training"
        if self.disclosed is not None:
            yield (
                f"the new nodes above {self.disclosed} start from its model without noise: its privacy does not cover "
                f"earlier training, only what {self.disclosed} sends from now on"
            )
        for name in islice(self.joined, max(1, MAX_COMPARED // max(1, len(self.left)))):
            if near := suggest(name, self.left):
                yield f"{name} is a new node{near} Names identify nodes: the model of the removed node is discarded"

    def record(self) -> dict[str, Any]:
        """Return all changes as plain values for JSON."""
        return {
            "joined": dict(self.joined),
            "left": list(self.left),
            "moved": {name: list(parents) for name, parents in self.moved.items()},
            "changed": {
                name: {key: [old, new] for key, old, new in changed} for name, changed in self.settings.items()
            },
        }


def described(topology: Topology) -> dict[str, dict[str, Any]]:
    """Return the nodes of a topology as plain values, parents first.

    Settings with their default value, and settings without effect at the node, are left out.
    """
    parents = {child.name: node.name for node in topology.nodes.values() for child in node.children}
    nodes: dict[str, dict[str, Any]] = {}
    for name, node in topology.nodes.items():
        values = dict(_flat({"corpus": node.corpus, "weight": node.weight, **asdict(node.settings)}))
        unused = (*(FOR_CHILDREN if node.is_leaf else ()), *(() if node.holds_data else _FOR_DATA))
        relevant = {
            key: value
            for key, value in values.items()
            if value != _DEFAULTS.get(key) and key.split(".")[0] not in unused
        }
        nodes[name] = {"parent": parents.get(name), **relevant}
    return nodes


def compare(old: Described, new: Described) -> Changes:
    """Find the changes from an old world to a new one; the order of siblings does not matter.

    A new node starts from the model of its nearest ancestor in the old world. A new root starts from the old root,
    which has the model of the whole old world.
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
        moved={name: (before, after) for name, (before, after) in parents.items() if before != after},
        settings={name: changes for name, changes in settings.items() if changes},
        loosened={name: changes for name, changes in loosened.items() if changes},
        opened={name: changes for name, changes in opened.items() if changes},
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
    """Whether a change makes a rule on residuals looser."""
    key, old, new = setting
    if key == "residuals.share":
        return bool(new)
    return key == "residuals.accept_from" and old is not None and (new is None or not set(new) <= set(old))


def _bared(old: Described, new: Described) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """Find the nodes that start to read a corpus with less privacy than a node of the old world did."""
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
    fields = {key.removeprefix(f"{kind}."): value for key, value in node.items() if key.startswith(f"{kind}.")}
    kinds = {"privacy": Privacy, "example_privacy": PrivacyOfExamples}
    return kinds[kind](**fields) if fields else None


def _grouped(values: Mapping[str, Any]) -> dict[Any, list[str]]:
    """Return value -> the names that have it."""
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
