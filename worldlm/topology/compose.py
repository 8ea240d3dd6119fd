"""YAML text composed into nodes with marks and with limits on size; no Python object is ever constructed.

All text is parsed once, event by event, so that a text beyond a limit is rejected before it is read to its end.
"""

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
C_PARSER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""PyYAML's parser in C, ten times as fast as its parser in Python, which takes its place where PyYAML has none."""


class Entry(NamedTuple):
    """A value of a mapping, and the line (from 1) of its key."""

    line: int
    node: yaml.Node


class Limits(NamedTuple):
    """What a text may contain, and what parses it."""

    depth: int = MAX_DEPTH
    """Levels of lists and mappings, the value in the innermost one included."""
    meaning: str = ""
    """What this many levels are enough for, for the error."""
    parser: type = yaml.SafeLoader
    """The parser of PyYAML. Texts that others read too need the one that these use, because the two differ in a few
    rare texts."""


C_LIMITS = Limits(parser=C_PARSER)
"""The limits of texts that jsonargparse reads too, with the parser that it uses."""

_STARTS = {yaml.SequenceStartEvent: yaml.SequenceNode, yaml.MappingStartEvent: yaml.MappingNode}
_ENDS = (yaml.SequenceEndEvent, yaml.MappingEndEvent)


class LimitExceeded(yaml.composer.ComposerError):
    """Valid YAML that exceeds a limit."""


class _Open:
    """A list or a mapping whose end is yet to come, or the document, whose node is None."""

    __slots__ = ("anchor", "below", "depth", "mark", "node", "num_values")

    def __init__(self, node: Any, anchor: str | None, mark: Any) -> None:
        self.node = node
        self.anchor = anchor
        self.mark = mark
        self.below: list[yaml.Node] = []
        self.num_values = 0
        """Values below it, with aliases expanded."""
        self.depth = 0
        """Levels below it, with aliases expanded."""

    def add(self, node: yaml.Node, num_values: int, depth: int) -> None:
        self.below.append(node)
        self.num_values += num_values
        self.depth = max(self.depth, depth)


class Composer:
    """Composes the only document of a text, and rejects cycles, tags, deep nesting and YAML bombs.

    It keeps the open lists and mappings in a list, so that deep nesting does not use up Python's stack.

    Attributes:
        alias_lines: id of an aliased node -> line (from 1) of its first alias.
    """

    def __init__(self, text: str, limits: Limits | None = None) -> None:
        self.alias_lines: dict[int, int] = {}
        self._limits = limits or Limits()
        self._parser = self._limits.parser(text)
        self._max_values = min(MAX_VALUES, FREE_VALUES + len(text))
        self._anchors: dict[str, yaml.Node] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        """Anchor -> values and levels of its node, once that is closed."""
        self._tags: dict[tuple[type, str | None, Any], str] = {}
        """Tags by form: keys and many values occur again and again."""

    def compose(self) -> yaml.Node | None:
        """Return the root of the document; None if there is no document.

        Raises:
            yaml.YAMLError: (or ValueError) if the text is not YAML.
            LimitExceeded: if it exceeds a limit.
        """
        document = _Open(None, None, None)
        open_ = [document]
        for event in iter(self._parser.get_event, None):
            kind = type(event)
            if kind is yaml.ScalarEvent:
                self._add_scalar(open_, event)
            elif kind in _STARTS:
                tag = self._tag(_STARTS[kind], None, event)
                node = _STARTS[kind](tag, [], event.start_mark, flow_style=event.flow_style)
                self._name(node, event)
                self._check_depth(len(open_), event.start_mark)
                open_.append(_Open(node, event.anchor, event.start_mark))
            elif kind in _ENDS:
                self._close(open_)
            elif kind is yaml.AliasEvent:
                self._add_alias(open_, event)
            elif kind is yaml.DocumentStartEvent and document.below:
                first = document.below[0].start_mark
                context = "expected a single document in the stream"
                raise yaml.composer.ComposerError(context, first, "but found another document", event.start_mark)
        return document.below[0] if document.below else None

    def _add_scalar(self, open_: list[_Open], event: Any) -> None:
        tag = self._tag(yaml.ScalarNode, event.value, event)
        node = yaml.ScalarNode(tag, event.value, event.start_mark, event.end_mark, style=event.style or None)
        self._name(node, event)
        self._check_depth(len(open_), event.start_mark)
        if event.anchor is not None:
            self._sizes[event.anchor] = (1, 1)
        open_[-1].add(node, 1, 1)

    def _add_alias(self, open_: list[_Open], event: Any) -> None:
        anchor, mark = event.anchor, event.start_mark
        if anchor not in self._anchors:
            raise yaml.composer.ComposerError(None, None, f"found undefined alias {anchor!r}", mark)
        if anchor not in self._sizes:
            _reject(f"alias *{anchor} makes a cycle: a node cannot contain itself", mark)
        node = self._anchors[anchor]
        self.alias_lines.setdefault(id(node), mark.line + 1)
        open_[-1].add(node, *self._sizes[anchor])

    def _close(self, open_: list[_Open]) -> None:
        closed = open_.pop()
        node, num_values, depth = closed.node, 1 + closed.num_values, 1 + closed.depth
        if num_values > self._max_values:
            _reject(f"has more than the {self._max_values} values allowed, aliases expanded", closed.mark)
        if depth > self._limits.depth:
            self._too_deep(", aliases expanded", closed.mark)
        if isinstance(node, yaml.MappingNode):
            parts = iter(closed.below)
            node.value = list(zip(parts, parts, strict=True))
        else:
            node.value = closed.below
        if closed.anchor is not None:
            self._sizes[closed.anchor] = (num_values, depth)
        open_[-1].add(node, num_values, depth)

    def _check_depth(self, depth: int, mark: Any) -> None:
        if depth > self._limits.depth:
            self._too_deep("", mark)

    def _too_deep(self, when: str, mark: Any) -> None:
        _reject(f"is nested deeper than the {self._limits.depth} levels allowed{when}{self._limits.meaning}", mark)

    def _name(self, node: yaml.Node, event: Any) -> None:
        """Keep a node that has an anchor."""
        if event.anchor is None:
            return
        if event.anchor in self._anchors:
            context = f"found duplicate anchor {event.anchor!r}; first occurrence"
            first = self._anchors[event.anchor].start_mark
            raise yaml.composer.ComposerError(context, first, "second occurrence", event.start_mark)
        self._anchors[event.anchor] = node

    def _tag(self, kind: type, value: str | None, event: Any) -> str:
        """Return the tag of a value: the one that PyYAML derives from its form, or an allowed one that is written."""
        if event.tag is None or event.tag == "!":
            return self._tag_of_form(kind, value, event.implicit)
        tag = event.tag.removeprefix(_PREFIX)
        if tag not in _TAGS:
            message = f"tag {shorten(repr(event.tag))} is not allowed; write the plain value"
            raise yaml.composer.ComposerError(None, None, message, event.start_mark)
        if tag in _BY_FORM and (value is None or self._tag_of_form(kind, value, (True, False)) != event.tag):
            shown = "a list or a mapping" if value is None else shorten(repr(value))
            _reject(f"tag !!{tag} does not fit {shown}; write the plain value", event.start_mark)
        return str(event.tag)

    def _tag_of_form(self, kind: type, value: str | None, implicit: Any) -> str:
        form = (kind, value, implicit)
        if form not in self._tags:
            self._tags[form] = str(self._parser.resolve(kind, value, implicit))
        return self._tags[form]


def too_far(text: str) -> str:
    """Return why a reader without these limits must not read a text as YAML; "" if it is not YAML or within the limits.

    Scalars inside the text are checked as YAML texts too, because some readers parse a text at any depth.
    """
    if not _REACHES.search(text):
        return ""
    try:
        node = Composer(text).compose()
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
