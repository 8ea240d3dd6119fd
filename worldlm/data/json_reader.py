"""Records from JSON: an object on each line, objects over several lines, or an array of objects.

Arrays are read item by item, so that a large file needs no more memory than its largest item.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO

from worldlm.data.streams import Located, not_utf8, open_text
from worldlm.topology.errors import printable

_PIECE = 2**16
_SPACE = re.compile(r"[ \t\n\r]*")
_LONGEST_CUT = 16
"""Characters before the end of a text in which the parser may stop because a word or an escape is incomplete."""


def read_json(file: Path, fields: tuple[str, ...]) -> Iterator[Located]:
    """Yield the records of a JSON file, the place of each, and the fraction of the file that is read.

    Raises:
        ValueError: If the file cannot be read or is not JSON; the message starts with the file and the line.
    """
    try:
        yield from _read_lines(file) if _has_lines(file) else _read_values(file, fields)
    except UnicodeDecodeError as error:
        raise not_utf8(file) from error


def _has_lines(file: Path) -> bool:
    """Return whether the first line is a JSON object, and not the last."""
    with open_text(file) as (stream, _):
        while (start := stream.read(1)).isspace():
            pass
        if start != b"{":  # perhaps an array on one very long line
            return False
        try:
            json.loads(start + stream.readline())
        except (ValueError, RecursionError):
            return False
        while (start := stream.read(1)).isspace():
            pass
        return bool(start)


def _read_lines(file: Path) -> Iterator[Located]:
    name = printable(str(file))
    with open_text(file) as (stream, done):
        for number, line in enumerate(stream, 1):
            if line.isspace():
                continue
            try:
                record = json.loads(line)
            except UnicodeDecodeError:
                raise
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{name}:{number}: not a JSON object on one line ({error})") from error
            yield record, f"{name}:{number}", done()


def _read_values(file: Path, fields: tuple[str, ...]) -> Iterator[Located]:
    name = printable(str(file))
    with open_text(file) as (stream, done), io.TextIOWrapper(stream, encoding="utf-8") as text:
        scanner = _Scanner(text)
        try:
            values = _values(scanner)
            first = list(islice(values, 2))
            if len(first) == 1:
                first = _within(*first[0], fields)
            for place, value in chain(first, values):
                yield value, f"{name}:{place}", done()
        except _NotJSON as error:
            raise ValueError(f"{name}:{error.line}: not JSON ({error})") from error


def _within(place: str, value: object, fields: tuple[str, ...]) -> list[tuple[str, object]]:
    """Return the records in the only value of a file: the value itself, or the list of objects that it contains."""
    if isinstance(value, dict) and not any(field in value or field.split(".")[0] in value for field in fields):
        lists = [items for items in value.values() if isinstance(items, list) and items and isinstance(items[0], dict)]
        if len(lists) == 1:
            return [(f"{place}: item {number}", item) for number, item in enumerate(lists[0], 1)]
    return [(place, value)]


def _values(scanner: _Scanner) -> Iterator[tuple[str, object]]:
    """Yield the values of a JSON text, or the items of an array instead of the array, with the line of each."""
    while start := scanner.peek():
        if start == ",":
            raise _NotJSON("',' between objects that are in no array", scanner.line)
        if start != "[":
            yield str(scanner.line), scanner.value()
            continue
        scanner.at += 1
        number = 0
        while scanner.peek() != "]":
            number += 1
            yield f"{scanner.line}: item {number}", scanner.value()
            end = scanner.peek()
            if end == ",":
                scanner.at += 1
            elif end != "]":
                raise _NotJSON(f"{end!r} instead of ',' or ']'" if end else "the array has no end", scanner.line)
        scanner.at += 1


class _NotJSON(ValueError):
    """A mistake in a JSON text."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


class _Scanner:
    """Reads JSON values one after the other from a stream."""

    line = 1
    """The line of the next character."""
    at = 0
    """The position of the next character in the text that is read so far."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._text = ""

    def peek(self) -> str:
        """Skip white space and return the next character, or an empty string at the end."""
        while True:
            space = _SPACE.match(self._text, self.at)
            assert space is not None
            self._move(space.end())
            if self.at < len(self._text):
                return self._text[self.at]
            if not self._read_more():
                return ""

    def value(self) -> object:
        """Return the value that begins at the next character."""
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self._text, self.at)
            except json.JSONDecodeError as error:
                is_cut = error.pos > len(self._text) - _LONGEST_CUT or error.msg.startswith("Unterminated string")
                if not is_cut:
                    raise _NotJSON(error.msg, self.line + self._text.count("\n", self.at, error.pos)) from error
                if not self._read_more():
                    raise _NotJSON(f"{error.msg}; the file ends here", self.line) from error
            except (ValueError, RecursionError) as error:  # such as a number of thousands of digits
                raise _NotJSON(str(error), self.line) from error
            else:
                if end == len(self._text) and self._read_more():  # perhaps only the first digits of a number
                    continue
                self._move(end)
                return value

    def _move(self, end: int) -> None:
        self.line += self._text.count("\n", self.at, end)
        self.at = end

    def _read_more(self) -> bool:
        """Read as much again as is not used yet, so that a long value is parsed only a few times."""
        more = self._stream.read(max(_PIECE, len(self._text) - self.at))
        self._text, self.at = self._text[self.at :] + more, 0
        return bool(more)
