"""Topology files: from YAML to a checked tree. All mistakes are reported together, each with its line."""

from __future__ import annotations

import gc
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import yaml

from worldlm.topology import lint
from worldlm.topology.checks import FieldError, bad_name
from worldlm.topology.compose import C_PARSER, Entry, Limits, line_of
from worldlm.topology.copies import copy_problem, expand_copies
from worldlm.topology.errors import UserError
from worldlm.topology.find import as_yaml, find_file
from worldlm.topology.reader import Reader, read_text
from worldlm.topology.scalars import is_null
from worldlm.topology.settings import (
    FOR_CHILDREN,
    Link,
    OuterOptimizer,
    Privacy,
    PrivacyOfExamples,
    Residuals,
    Settings,
)
from worldlm.topology.tree import MAX_LEVELS, Node, Topology

_TOP_KEYS = ("name", "description", "settings", "root")
_NODE_KEYS = ("name", "corpus", "weight", "copies", "settings", "children")
_SETTINGS_KEYS = tuple(field.name for field in fields(Settings))
_HINTS = get_type_hints(Settings)
_LIMITS = Limits(
    depth=2 * MAX_LEVELS + 16,  # of YAML: a node and its list of children are two, and the settings of a leaf a few
    meaning=f", which are enough for a tree of {MAX_LEVELS} levels of nodes",
    parser=C_PARSER,  # nothing else reads topologies
)

# Stand-ins for values that could not be read, so that the rest of the file is still checked.
_STAND_IN_STEPS = Settings(num_local_steps=1)
_STAND_INS = {"copies": 1, "name": "unreadable", "corpus": "unreadable", "weight": None, "description": ""}
_STAND_IN = Node(name="unreadable", corpus="unreadable", settings=_STAND_IN_STEPS)


class TopologyError(UserError):
    """All mistakes in a topology file, one line each: `file:line: problem`."""


class _Inherited(NamedTuple):
    """The settings that a node inherits, and the keys among them that could not be read."""

    settings: Settings
    broken: frozenset[str]


def load_topology(source: str | Path | Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> Topology:
    """Load a topology by path, by the name of a file in `topologies/`, or from a dict with the content of a file.

    Args:
        source: the file or the dict.
        settings: replace settings at the top of the file, as if they were written there.

    Raises:
        FileNotFoundError: if there is none; the message lists the known names.
        TopologyError: (a ValueError) with all mistakes in the file, one per line.
    """
    if isinstance(source, Mapping):
        return parse_topology(as_yaml(source), "topology", settings)
    path = find_file("topologies", source)
    return parse_topology(read_text(path, TopologyError), str(path), settings)


def parse_topology(text: str, source: str, settings: Mapping[str, Any] | None = None) -> Topology:
    """Read a topology from YAML text.

    Warns of settings that have no effect, of a jurisdiction in `accept_from` that no node has, and of texts such as
    `${HOME}`, which nothing replaces.

    Args:
        text: the YAML.
        source: its name in errors and in `Node.source`, usually the file's path.
        settings: replace settings at the top of the text; the settings of a node still take precedence.

    Raises:
        TopologyError: (a ValueError) with all mistakes, one per line.
    """
    with _without_garbage_collection():
        reader = Reader(text, source, TopologyError, _LIMITS)
        values = _Loading(reader, settings or {}).topology()
        reader.finish()
        topology = Topology(**values)
    for warning in [*lint.placeholders(reader), *lint.warnings(topology)]:
        warnings.warn(warning, UserWarning, stacklevel=2)
    return topology


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Stop the search for cycles while many objects are made that stay; a large tree is read a quarter faster."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Loading:
    """Builds the tree from a topology file. After a mistake is reported, a stand-in replaces the value."""

    def __init__(self, reader: Reader, overrides: Mapping[str, Any]) -> None:
        self.reader = reader
        self.overrides = overrides
        self.name_lines: dict[str, int] = {}
        self.copies: dict[str, int] = {}
        self.node_lines: dict[int, int] = {}

    def topology(self) -> dict[str, Any]:
        """Read the whole file: the arguments of Topology."""
        root = self.reader.root
        top = self.reader.mapping(root, "a topology", _TOP_KEYS)
        for key in ("name", "root"):
            if key not in top and isinstance(root, yaml.MappingNode):
                self.reader.report(line_of(root), f"a topology needs the key {key!r}")
        values = self._values(top, {"name": str, "description": str})
        if "name" in top and (problem := bad_name(values["name"])):
            self.reader.report(top["name"].line, f"name {problem}")
        inherited = self._override(self._settings(top, _Inherited(Settings(), frozenset())))
        values["root"] = self._node(top["root"], inherited) if "root" in top else _STAND_IN
        if values["root"].listens and not self.reader.num_mistakes:
            problem = "no node trains: num_local_steps is 0 at every node that holds data"
            self.reader.report(top["root"].line, problem)
        if self.copies and not self.reader.num_mistakes:
            values["root"] = self._expand(values["root"])
        return values

    def _expand(self, root: Node) -> Node:
        """Return the tree with all copies, or report why it cannot be built."""
        if (failure := copy_problem(root, self.copies)) is not None:
            node, problem = failure
            self.reader.report(self.name_lines[node.name], f"node {node.name!r}: {problem}")
            return root
        (whole,) = expand_copies(root, self.copies)
        names: dict[str, Node] = {}
        for node in whole.walk():
            if (other := names.setdefault(node.name, node)) is not node:
                problem = f"name {node.name!r} is already used by the node in line {other.source.rpartition(':')[2]}"
                self.reader.report(int(node.source.rpartition(":")[2]), f"{problem}, with copies expanded")
                break
        return whole

    def _node(self, entry: Entry, above: _Inherited, parent: str | None = None, level: int = 1) -> Node:
        node = entry.node
        if id(node) in self.node_lines:
            problem = f"a node has one parent, but an alias uses the node of line {self.node_lines[id(node)]} again"
            self.reader.report(self.reader.alias_line(node), problem)
            return _STAND_IN
        self.node_lines[id(node)] = line_of(node)
        what = "the root" if parent is None else f"a child of {parent!r}"
        if level > MAX_LEVELS:
            self.reader.report(line_of(node), f"{what} is at level {level} of the tree; {MAX_LEVELS} are allowed")
            return _STAND_IN
        entries = self.reader.mapping(node, what, _NODE_KEYS)
        if not isinstance(node, yaml.MappingNode):
            return _STAND_IN
        values = self._values(entries, {"name": str, "corpus": str | None, "weight": float | None, "copies": int})
        name = self._name(values, entries, line_of(node), what)
        if "copies" in entries:
            self._count(name, values.pop("copies"), entries["copies"].line, is_root=parent is None)
        inherited = self._settings(entries, above)
        listed = self.reader.items(entries["children"], "children") if "children" in entries else []
        children = tuple(self._node(Entry(line_of(item), item), inherited, name, level + 1) for item in listed)
        self._reject_unused(entries, is_root=parent is None, is_leaf=not listed)
        settings = inherited.settings
        if "num_local_steps" in inherited.broken:
            settings = replace(settings, num_local_steps=1)
        source = f"{self.reader.source}:{line_of(node)}"
        values |= {"name": name, "children": children, "settings": settings, "source": source}
        return self.reader.attempt(Node, values, entries, line_of(node)) or _STAND_IN

    def _values(self, entries: Mapping[str, Entry], hints: Mapping[str, Any]) -> dict[str, Any]:
        read = {k: self.reader.value(entries[k], hints[k], k) for k in hints if k in entries}
        return {k: _STAND_INS[k] if value is MISSING else value for k, value in read.items()}

    def _name(self, values: Mapping[str, Any], entries: Mapping[str, Entry], line: int, what: str) -> str:
        if "name" not in entries:
            self.reader.report(line, f"{what} needs the key 'name'")
            return _STAND_IN.name
        name, line = str(values["name"]), entries["name"].line
        if name in self.name_lines:
            problem = f"name {name!r} is already used by the node in line {self.name_lines[name]}"
            self.reader.report(line, f"{problem}; names must be unique")
        elif values["name"] is not _STAND_INS["name"]:
            self.name_lines[name] = line
        return name

    def _count(self, name: str, copies: int, line: int, is_root: bool) -> None:
        self.copies[name] = copies
        if is_root:
            self.reader.report(line, "copies: a topology has only one root; put a node above it")
        elif copies < 1:
            self.reader.report(line, f"copies must be at least 1, but is {copies}")

    def _reject_unused(self, entries: Mapping[str, Entry], is_root: bool, is_leaf: bool) -> None:
        if is_root and "weight" in entries:
            problem = "weight has no effect at the root, which has no parent"
            self.reader.report(entries["weight"].line, problem)
        if not is_leaf or "settings" not in entries or is_null(entries["settings"].node):
            return
        written = self.reader.mapping(entries["settings"].node, "settings", _SETTINGS_KEYS)
        for key in FOR_CHILDREN:
            if key in written:
                problem = f"{key} has no effect at a leaf: it applies to a node's children"
                self.reader.report(written[key].line, problem)

    def _settings(self, holder: Mapping[str, Entry], above: _Inherited) -> _Inherited:
        if "settings" not in holder or is_null(holder["settings"].node):
            return above
        entries = self.reader.mapping(holder["settings"].node, "settings", _SETTINGS_KEYS)
        read = {key: self._setting(key, e, above.settings) for key, e in entries.items()}
        valid = {key: value for key, value in read.items() if value is not MISSING}
        try:
            settings = replace(above.settings, **valid)
        except FieldError as error:
            for key, problem in error.mistakes.items():
                self.reader.report(entries[key].line, f"{key} {problem}")
                del valid[key]
            settings = replace(above.settings, **valid)
        return _Inherited(settings, above.broken - valid.keys() | (read.keys() - valid.keys()))

    def _override(self, above: _Inherited) -> _Inherited:
        """Replace settings at the top of the file by the overrides."""
        if not self.overrides:
            return above
        text = yaml.safe_dump({"settings": dict(self.overrides)}, sort_keys=False)
        reader = Reader(text, "federation.settings", TopologyError)
        settings = _Loading(reader, {})._settings(reader.mapping(reader.root, "settings"), above)
        try:
            reader.finish()
        except TopologyError as error:  # lines of this text, which nobody wrote, would mislead
            raise TopologyError(
                [re.sub(r"^(federation\.settings):\d+:", r"\1:", line) for line in error.mistakes]
            ) from None
        return settings

    def _setting(self, key: str, entry: Entry, above: Settings) -> Any:
        if key in ("privacy", "example_privacy"):
            return self._privacy(key, entry, getattr(above, key))
        if key in ("link", "outer_optimizer") and is_null(entry.node):
            return None
        if key == "outer_optimizer":
            return self._outer_optimizer(entry) or MISSING
        if key == "link":
            return self.reader.build(Link, entry, key) or MISSING
        if key == "residuals":
            return self.reader.build(Residuals, entry, key) or MISSING
        return self.reader.value(entry, _HINTS[key], key)

    def _privacy(self, key: str, entry: Entry, demand: Privacy | None) -> Any:
        if is_null(entry.node):
            if demand is not None:
                problem = f"{key} may only be tightened below a private federation, but is removed"
                self.reader.report(entry.line, problem)
            return None if demand is None else MISSING
        given = {} if demand is None else asdict(demand)
        kind = PrivacyOfExamples if key == "example_privacy" else Privacy
        privacy = self.reader.build(kind, entry, key, given)
        if privacy is None or demand is None:
            return privacy or MISSING
        written = self.reader.mapping(entry.node, key)
        loosened = demand.loosened_by(privacy)
        for name, problem in loosened.items():
            self.reader.report(written[name].line, f"{key}.{name} {problem}")
        return MISSING if loosened else privacy

    def _outer_optimizer(self, entry: Entry) -> OuterOptimizer | None:
        num_mistakes = self.reader.num_mistakes
        entries = self.reader.mapping(entry.node, "outer_optimizer")
        arguments = {
            key: self.reader.value(e, str if key == "name" else Any, f"outer_optimizer.{key}")
            for key, e in entries.items()
        }
        if self.reader.num_mistakes > num_mistakes:
            return None
        if "name" not in arguments:
            self.reader.report(entry.line, "outer_optimizer needs the key 'name'")
            return None
        values = {"name": arguments.pop("name"), "arguments": arguments}
        prefix = "outer_optimizer."
        return self.reader.attempt(OuterOptimizer, values, entries, entry.line, prefix)
