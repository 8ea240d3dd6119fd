"""YAML read with line numbers: plain values only, every mistake of a file told at once.

Nothing is ever constructed from a tag. Values are read by their declared type, so that `6e-4` is a
number where a number belongs, and `no` a text where a text does. Topologies are read through this;
recipes can be too (`Reader.line` finds the line of a dotted key).
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar, get_type_hints

import yaml

from worldlm.topology.checks import FieldError, shorten
from worldlm.topology.compose import MERGE, Composer, Entry, line_of, pairs
from worldlm.topology.errors import UserError, printable, suggest
from worldlm.topology.scalars import coerce, is_null, shown

MAX_BYTES = 2_000_000
MAX_CHARACTERS = 1000
"""Of one mistake, which may repeat a value."""
MAX_MISTAKES = 100
"""Told of one file; how many more there are is told too."""
_T = TypeVar("_T")
_NONE_GIVEN: Mapping[str, Any] = MappingProxyType({})


def read_text(path: Path, error: type[UserError] = UserError) -> str:
    """Read a small UTF-8 text file.

    Raises:
        UserError: (or `error`) if it is a folder, no file, unreadable, too large, or not UTF-8.
    """
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise error([f"{path}: is a folder, not a YAML file"])
        if not stat.S_ISREG(kind):  # a pipe may never end, nor begin
            raise error([f"{path}: is no file, but a pipe or a device; write what it gives to a file"])
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
        told = f"{path}:{line}: is not UTF-8: byte 0x{byte:02x}; save the file as UTF-8"
        raise error([told]) from problem


def read_plain(path: Path) -> Any:
    """Read a YAML file to plain values, as PyYAML takes them.

    Raises:
        UserError: As `read_text` and `Reader`, or if a value is none of its kind, such as the 31st of February.
    """
    text = read_text(path)
    Reader(text, str(path))
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as problem:
        raise UserError([f"{path}: cannot be read: {' '.join(str(problem).split())}"]) from problem


class Reader:
    """One YAML document, and the mistakes found in it so far.

    Args:
        text: the document.
        source: its name in errors, usually its path.
        error: what to raise.

    Raises:
        UserError: (or `error`) if it is empty, not YAML, too deep, cyclic, or a YAML bomb.
    """

    def __init__(self, text: str, source: str, error: type[UserError] = UserError) -> None:
        self.source = source
        self._error = error
        self._mistakes: list[tuple[int, str]] = []
        self.root, self._alias_lines = self._compose(text)

    def _compose(self, text: str) -> tuple[yaml.Node, dict[int, int]]:
        try:
            loader = Composer(text)
            root = loader.get_single_node()
        except yaml.MarkedYAMLError as problem:
            mark = problem.problem_mark or problem.context_mark
            told = " ".join(filter(None, (problem.context, problem.problem)))
            self.fail(mark.line + 1 if mark else 1, told)
        except yaml.reader.ReaderError as problem:
            line = text.count("\n", 0, problem.position) + 1
            self.fail(line, f"character {problem.character!r} is not allowed in YAML")
        except (yaml.YAMLError, ValueError, OverflowError) as problem:
            self.fail(1, f"is not YAML: {problem}")
        if root is None:
            self.fail(1, "is empty")
        return root, loader.alias_lines

    def report(self, line: int, wrong: str) -> None:
        """Keep a mistake for `finish`."""
        self._mistakes.append((line, printable(shorten(" ".join(wrong.split()), MAX_CHARACTERS))))

    @property
    def num_mistakes(self) -> int:
        """How many mistakes are kept so far."""
        return len(self._mistakes)

    def fail(self, line: int, wrong: str) -> NoReturn:
        """Report a mistake after which nothing more can be read."""
        self.report(line, wrong)
        raise self._error(self._told())

    def finish(self) -> None:
        """Raise all mistakes kept, in the order of their lines, if there are any."""
        if self._mistakes:
            raise self._error(self._told())

    def _told(self) -> list[str]:
        mistakes = sorted(set(self._mistakes))
        told = [f"{self.source}:{line}: {wrong}" for line, wrong in mistakes[:MAX_MISTAKES]]
        if left := mistakes[MAX_MISTAKES:]:
            told.append(f"{self.source}:{left[0][0]}: and {len(left)} more mistakes from here on")
        return told

    def alias_line(self, node: yaml.Node) -> int:
        """Return the line (from 1) of the first alias to a node, its own line if there is none."""
        return self._alias_lines.get(id(node), line_of(node))

    def line(self, path: str) -> int:
        """Return the line (from 1) of a dotted key such as `trainer.callbacks.0.init_args`.

        A path that leaves the document gives the line of its deepest part that is there.
        """
        line, node = line_of(self.root), self.root
        for part in path.split("."):
            found: Entry | None = None
            if isinstance(node, yaml.MappingNode):
                found = next((e for key, e in pairs(node) if key.value == part), None)
            elif isinstance(node, yaml.SequenceNode) and part in map(str, range(len(node.value))):
                found = Entry(line_of(node.value[int(part)]), node.value[int(part)])
            if found is None:
                break
            line, node = found
        return line

    def mapping(self, node: yaml.Node, what: str, known: Sequence[str] | None = None) -> dict[str, Entry]:
        """Read a mapping's entries; report doubled and unknown keys, and what is no mapping.

        Args:
            node: the value.
            what: its name in errors, as `settings`.
            known: the keys allowed; None allows any.
        """
        if not isinstance(node, yaml.MappingNode):
            self.report(line_of(node), f"{what} must be a mapping (key: value), but is {shown(node)}")
            return {}
        entries: dict[str, Entry] = {}
        own = {id(key) for key, _ in node.value}
        for key, entry in pairs(node):
            if not isinstance(key, yaml.ScalarNode):
                self.report(entry.line, f"a key of {what} must be text, but is {shown(key)}")
            elif key.tag == MERGE:
                told = f"'<<' of {what} must be a mapping or a list of them"
                self.report(entry.line, f"{told}, but is {shown(entry.node)}")
            elif known is not None and key.value not in known:
                self._unknown(key.value, entry.line, what, known)
            elif key.value not in entries:
                entries[key.value] = entry
            elif id(key) in own:
                first = entries[key.value].line
                self.report(
                    entry.line,
                    f"key {key.value!r} of {what} is written twice, first in line {first}",
                )
        return entries

    def _unknown(self, key: str, line: int, what: str, known: Sequence[str]) -> None:
        told = f"unknown key {shorten(repr(key))} in {what}; allowed: {', '.join(known)}"
        self.report(line, told + self.near(key, known))

    def near(self, name: str, known: Iterable[str]) -> str:
        """Suggest a name, as `suggest`, unless there are more mistakes than are told: to search takes time."""
        return suggest(name, known) if self.num_mistakes < MAX_MISTAKES else ""

    def items(self, entry: Entry, what: str) -> list[yaml.Node]:
        """Read a list's items; report what is no list. Null is an empty list."""
        if isinstance(entry.node, yaml.SequenceNode):
            return list(entry.node.value)
        if not is_null(entry.node):
            self.report(entry.line, f"{what} must be a list, but is {shown(entry.node)}")
        return []

    def value(self, entry: Entry, declared: Any, what: str) -> Any:
        """Read a value of a declared type; report, and return MISSING, if it is none."""
        try:
            return coerce(entry.node, declared)
        except ValueError as problem:
            self.report(entry.line, f"{what} {problem}")
            return MISSING

    def build(self, cls: type[_T], entry: Entry, what: str, given: Mapping[str, Any] = _NONE_GIVEN) -> _T | None:
        """Build a dataclass from a mapping, each mistake told with its own line.

        Args:
            cls: a dataclass whose `__post_init__` raises FieldError.
            entry: the mapping.
            what: its name in errors, as `privacy`.
            given: values of fields that the mapping does not name.

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
        """Call `make(**values)`; give each field of a FieldError its key's line, else `line`."""
        try:
            return make(**values)
        except FieldError as problem:
            for name, wrong in problem.mistakes.items():
                at = entries[name].line if name in entries else line
                self.report(at, f"{prefix}{name} {wrong}")
            return None
