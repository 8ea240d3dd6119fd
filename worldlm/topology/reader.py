"""YAML read with line numbers: plain values only. All mistakes in a file are reported together.

Nothing is ever constructed from a tag. Values are read by their declared type: `6e-4` is a number where a number is
declared, and `no` is a text where a text is declared. Topologies are read with this reader; recipes can be too
(`Reader.line` finds the line of a dotted key).
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar, get_type_hints

import yaml

from worldlm.topology.checks import FieldError, shorten
from worldlm.topology.compose import MERGE, Composer, Entry, Limits, line_of, pairs
from worldlm.topology.errors import UserError, join_names, printable, suggest
from worldlm.topology.scalars import coerce, is_null, shown

MAX_BYTES = 2_000_000
MAX_CHARACTERS = 1000
"""Of one mistake, whose message may repeat a value."""
MAX_MISTAKES = 100
"""Reported for one file; a last line counts the others."""
_NODE = re.compile(r"node '[^']*'")
_T = TypeVar("_T")
_NONE_GIVEN: Mapping[str, Any] = MappingProxyType({})


def read_text(path: Path, error: type[UserError] = UserError) -> str:
    """Read a small UTF-8 text file.

    Raises:
        UserError: (or `error`) if it is a folder, not a regular file, unreadable, too large, or not UTF-8.
    """
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise error([f"{path}: is a folder, not a YAML file"])
        if not stat.S_ISREG(kind):  # reading a pipe may block for ever
            raise error([f"{path}: is not a regular file but a pipe or a device; save its content to a file"])
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as problem:
        raise error([f"{path}: cannot be read: {problem.strerror}"]) from problem
    if len(content) > MAX_BYTES:
        raise error([f"{path}: is larger than the {MAX_BYTES} bytes allowed"])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = content.count(b"\n", 0, problem.start) + 1
        byte = content[problem.start]
        message = f"{path}:{line}: is not UTF-8: byte 0x{byte:02x}; save the file as UTF-8"
        raise error([message]) from problem


def read_plain(path: Path) -> Any:
    """Read a YAML file to plain values, with PyYAML's types.

    Raises:
        UserError: As `read_text` and `Reader`, or if a value is invalid for its type, such as the 31st of February.
    """
    return parse_plain(read_text(path), str(path))


def parse_plain(text: str, source: str) -> Any:
    """Read a YAML text to plain values; see `read_plain`."""
    Reader(text, source)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as problem:
        raise UserError([f"{source}: cannot be read: {' '.join(str(problem).split())}"]) from problem


class Reader:
    """A YAML document, and the mistakes found in it so far.

    Args:
        text: the document.
        source: its name in errors, usually its path.
        error: the class of the error to raise.
        limits: how deep it may be nested, and what parses it.

    Raises:
        UserError: (or `error`) if it is empty, not YAML, too deep, cyclic, or a YAML bomb.
    """

    def __init__(
        self, text: str, source: str, error: type[UserError] = UserError, limits: Limits | None = None
    ) -> None:
        self.source = source
        self._error = error
        self._mistakes: list[tuple[int, str]] = []
        self.root, self._alias_lines = self._compose(text, limits)

    def _compose(self, text: str, limits: Limits | None) -> tuple[yaml.Node, dict[int, int]]:
        try:
            if (odd := yaml.reader.Reader.NON_PRINTABLE.search(text)) is not None:  # the parsers count differently
                raise yaml.reader.ReaderError(self.source, odd.start(), ord(odd.group()), "unicode", "not printable")
            composer = Composer(text, limits)
            root = composer.compose()
        except yaml.MarkedYAMLError as problem:
            mark = problem.problem_mark or problem.context_mark
            message = " ".join(filter(None, (problem.context, problem.problem)))
            if mark and text[mark.index : mark.index + 1] == "\t":
                message = "is indented with a tab; YAML allows only spaces"
            self.fail(min(mark.line, len(text.splitlines()) - 1) + 1 if mark else 1, message)  # no line after the last
        except yaml.reader.ReaderError as problem:
            line = text.count("\n", 0, problem.position) + 1
            self.fail(line, f"character {problem.character!r} is not allowed in YAML")
        except (yaml.YAMLError, ValueError, OverflowError) as problem:
            self.fail(1, f"is not YAML: {problem}")
        if root is None:
            self.fail(1, "is empty")
        return root, composer.alias_lines

    def report(self, line: int, message: str) -> None:
        """Store a mistake; `finish` raises it."""
        self._mistakes.append((line, printable(shorten(" ".join(message.split()), MAX_CHARACTERS))))

    @property
    def num_mistakes(self) -> int:
        """The number of mistakes reported so far."""
        return len(self._mistakes)

    def fail(self, line: int, message: str) -> NoReturn:
        """Report a mistake that ends the reading, and raise all mistakes."""
        self.report(line, message)
        raise self._error(self._messages())

    def finish(self) -> None:
        """Raise all reported mistakes, in the order of their lines, if there are any."""
        if self._mistakes:
            raise self._error(self._messages())

    def _messages(self) -> list[str]:
        """Return one line per mistake. A mistake that many lines share, apart from the node's name, is one."""
        lines: dict[str, tuple[str, list[int]]] = {}
        for line, message in sorted(set(self._mistakes)):
            lines.setdefault(_NODE.sub("node", message), (message, []))[1].append(line)
        mistakes = list(lines.values())
        messages = [
            f"{self.source}:{first}: {message}{_also_in(others)}"
            for message, (first, *others) in mistakes[:MAX_MISTAKES]
        ]
        if left := mistakes[MAX_MISTAKES:]:
            messages.append(f"{self.source}:{left[0][1][0]}: and {len(left)} more mistakes from here on")
        return messages

    def alias_line(self, node: yaml.Node) -> int:
        """Return the line (from 1) of the first alias to a node, its own line if there is none."""
        return self._alias_lines.get(id(node), line_of(node))

    def line(self, path: str) -> int:
        """Return the line (from 1) of a dotted key such as `trainer.callbacks.0.init_args`.

        For a path that does not exist, this is the line of its deepest existing part.
        """
        line, node = line_of(self.root), self.root
        for part in path.split("."):
            entry: Entry | None = None
            if isinstance(node, yaml.MappingNode):
                entry = next((e for key, e in pairs(node) if key.value == part), None)
            elif isinstance(node, yaml.SequenceNode) and part in map(str, range(len(node.value))):
                entry = Entry(line_of(node.value[int(part)]), node.value[int(part)])
            if entry is None:
                break
            line, node = entry
        return line

    def mapping(self, node: yaml.Node, what: str, known: Sequence[str] | None = None) -> dict[str, Entry]:
        """Read a mapping's entries; report duplicate and unknown keys, and a value that is not a mapping.

        Args:
            node: the value.
            what: its name in errors, such as `settings`.
            known: the keys allowed; None allows any.
        """
        if not isinstance(node, yaml.MappingNode):
            self.report(line_of(node), f"{what} must be a mapping (key: value), but is {shown(node)}")
            return {}
        entries: dict[str, Entry] = {}
        unmerged = {id(key) for key, _ in node.value}
        for key, entry in pairs(node):
            if not isinstance(key, yaml.ScalarNode):
                self.report(entry.line, f"a key of {what} must be text, but is {shown(key)}")
            elif key.tag == MERGE:
                required = f"'<<' of {what} must be a mapping or a list of mappings"
                self.report(entry.line, f"{required}, but is {shown(entry.node)}")
            elif known is not None and key.value not in known:
                self._unknown(key.value, entry.line, what, known)
            elif key.value not in entries:
                entries[key.value] = entry
            elif id(key) in unmerged:
                first = entries[key.value].line
                self.report(
                    entry.line,
                    f"key {key.value!r} of {what} is written twice, first in line {first}",
                )
        return entries

    def _unknown(self, key: str, line: int, what: str, known: Sequence[str]) -> None:
        unknown = f"unknown key {shorten(repr(key))} in {what}; allowed: {', '.join(known)}"
        self.report(line, unknown + self.near(key, known))

    def near(self, name: str, known: Iterable[str]) -> str:
        """Suggest a name, as `suggest`; "" once there are `MAX_MISTAKES` mistakes, because each search takes time."""
        return suggest(name, known) if self.num_mistakes < MAX_MISTAKES else ""

    def items(self, entry: Entry, what: str) -> list[yaml.Node]:
        """Read a list's items; report a value that is not a list. Null is an empty list."""
        if isinstance(entry.node, yaml.SequenceNode):
            return list(entry.node.value)
        if not is_null(entry.node):
            self.report(entry.line, f"{what} must be a list, but is {shown(entry.node)}")
        return []

    def value(self, entry: Entry, declared: Any, what: str) -> Any:
        """Read a value of a declared type; report a value of another type, and return MISSING."""
        try:
            return coerce(entry.node, declared)
        except ValueError as problem:
            self.report(entry.line, f"{what} {problem}")
            return MISSING

    def build(self, cls: type[_T], entry: Entry, what: str, given: Mapping[str, Any] = _NONE_GIVEN) -> _T | None:
        """Build a dataclass from a mapping, and report each mistake with its line.

        Args:
            cls: a dataclass whose `__post_init__` raises FieldError.
            entry: the mapping.
            what: its name in errors, such as `privacy`.
            given: values of fields that are missing from the mapping.

        Returns:
            The object, or None after a mistake.
        """
        hints = get_type_hints(cls)
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        num_before = self.num_mistakes
        entries = self.mapping(entry.node, what, names)
        values = {k: self.value(e, hints[k], f"{what}.{k}") for k, e in entries.items()}
        values = {**given, **values}
        for field in fields(cls):  # type: ignore[arg-type]
            needed = field.default is MISSING and field.default_factory is MISSING
            if needed and field.name not in values and isinstance(entry.node, yaml.MappingNode):
                self.report(entry.line, f"{what} needs the key {field.name!r}")
        if self.num_mistakes > num_before or MISSING in values.values():
            return None
        return self.attempt(cls, values, entries, entry.line, f"{what}.")

    def attempt(
        self,
        make: type[_T],
        values: Mapping[str, Any],
        entries: Mapping[str, Entry],
        line: int,
        prefix: str = "",
    ) -> _T | None:
        """Call `make(**values)`; report the fields of a FieldError with the lines of their keys, or `line`."""
        try:
            return make(**values)
        except FieldError as problem:
            for name, message in problem.mistakes.items():
                at = entries[name].line if name in entries else line
                self.report(at, f"{prefix}{name} {message}")
            return None


def _also_in(lines: Sequence[int]) -> str:
    """Return the end of a message about a mistake that other lines share."""
    return f"; also in line{'s' if len(lines) > 1 else ''} {join_names(map(str, lines), 5)}" if lines else ""
