"""YAML text composed into nodes with marks and with limits on size; no Python object is ever constructed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from worldlm.topology.checks import shorten

MAX_DEPTH = 64
MAX_VALUES = 1_000_000
FREE_VALUES = 10_000
"""Values allowed in any text, aliases expanded; a text may have this many plus one per character."""

_PREFIX = "tag:yaml.org,2002:"
MERGE = f"{_PREFIX}merge"
_TAGS = {"str", "int", "float", "bool", "null", "seq", "map", "timestamp", "merge", "value"}
_BY_FORM = {"int", "float", "bool", "timestamp"}
"""Types that PyYAML recognises by their form; it fails on a value with such a tag and another form."""
_REACHES = re.compile(r"[&*!\[{]")


class Entry(NamedTuple):
    """A value of a mapping, and the line (from 1) of its key."""

    line: int
    node: yaml.Node


class _Extent(NamedTuple):
    """The size of a node with its aliases expanded."""

    num_values: int
    depth: int


class LimitExceeded(yaml.composer.ComposerError):
    """Valid YAML that exceeds a limit."""


class Composer(yaml.SafeLoader):
    """SafeLoader that only composes, and rejects cycles, tags, deep nesting and YAML bombs.

    Attributes:
        alias_lines: id of an aliased node -> line (from 1) of its first alias.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.alias_lines: dict[int, int] = {}
        self._extents: dict[int, _Extent] = {}
        self._num_open = 0
        self._max_values = min(MAX_VALUES, FREE_VALUES + len(text))

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node and check its size."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if self._num_open >= MAX_DEPTH:
            _reject(f"is nested deeper than the {MAX_DEPTH} levels allowed", mark)
        self._num_open += 1
        node = super().compose_node(parent, index)
        self._num_open -= 1
        if node is not None and isinstance(event, yaml.AliasEvent):
            self.alias_lines.setdefault(id(node), mark.line + 1 if mark else 1)
            if id(node) not in self._extents:
                _reject(f"alias *{event.anchor} makes a cycle: a node cannot contain itself", mark)
        elif node is not None:
            self._extents[id(node)] = self._measure(node, mark)
        return node

    def _form(self, node: yaml.Node) -> Any:
        """Return the tag that PyYAML derives from the form of a scalar; None if the node is not a scalar."""
        if not isinstance(node, yaml.ScalarNode):
            return None
        return self.resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]

    def _measure(self, node: yaml.Node, mark: Any) -> _Extent:
        tag = node.tag.removeprefix(_PREFIX)
        if tag not in _TAGS:
            message = f"tag {shorten(repr(node.tag))} is not allowed; write the plain value"
            raise yaml.composer.ComposerError(None, None, message, mark)
        if tag in _BY_FORM and self._form(node) != node.tag:
            shown = shorten(repr(node.value)) if isinstance(node, yaml.ScalarNode) else "a list or a mapping"
            _reject(f"tag !!{tag} does not fit {shown}; write the plain value", mark)
        below = [self._extents[id(child)] for child in _children(node)]
        num_values = 1 + sum(extent.num_values for extent in below)
        depth = 1 + max((extent.depth for extent in below), default=0)
        if num_values > self._max_values:
            _reject(f"has more than the {self._max_values} values allowed, aliases expanded", mark)
        if depth > MAX_DEPTH:
            _reject(f"is nested deeper than the {MAX_DEPTH} levels allowed, aliases expanded", mark)
        return _Extent(num_values, depth)


def too_far(text: str) -> str:
    """Return why a reader without these limits must not read a text as YAML; "" if it is not YAML or within the limits.

    Scalars inside the text are checked as YAML texts too, because some readers parse a text at any depth.
    """
    if not _REACHES.search(text):
        return ""
    try:
        node = Composer(text).get_single_node()
    except LimitExceeded as error:
        return str(error.problem)
    except (yaml.YAMLError, ValueError):  # other readers take it for a plain text
        return ""
    return next(filter(None, map(too_far, _texts(node, text))), "")


def _texts(node: yaml.Node | None, whole: str) -> Iterator[str]:
    """Yield the scalars in a node that are shorter than the whole text; a node that is used twice counts once."""
    pending, seen = [node], set[int]()
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, yaml.ScalarNode) and len(current.value) < len(whole):
            yield current.value
        pending += _children(current)


def pairs(node: yaml.MappingNode) -> Iterator[tuple[yaml.Node, Entry]]:
    """Yield a mapping's keys and entries: its own first, then those of its merge keys (`<<`).

    A merge key whose value is not a mapping is yielded itself.
    """
    merges: list[tuple[yaml.Node, yaml.Node]] = []
    for key, value in node.value:
        if key.tag == MERGE:
            sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
            merges += [(key, merged) for merged in sources]
        else:
            yield key, Entry(line_of(key), value)
    for key, merged in merges:
        if isinstance(merged, yaml.MappingNode):
            yield from pairs(merged)
        else:
            yield key, Entry(line_of(key), merged)


def line_of(node: yaml.Node) -> int:
    """Return the line (from 1) on which a node begins."""
    return int(node.start_mark.line) + 1


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _reject(problem: str, mark: Any) -> None:
    raise LimitExceeded(None, None, problem, mark)
