"""Readers: records from files of text, JSON and tables.

These readers replace those of `datasets`. Its JSON reader turns texts that look like dates into dates, does not report
the line of a mistake, and leaves lock files in the user's home. For data sets of the Hugging Face Hub see
`worldlm.data.hub`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeAlias

from worldlm.data.json_reader import read_json
from worldlm.data.streams import COMPRESSIONS, Located, not_utf8, open_text
from worldlm.data.tables import read_arrow, read_csv, read_parquet
from worldlm.files.regular import check_regular
from worldlm.topology.errors import printable

Reader: TypeAlias = Callable[[Path, tuple[str, ...]], Iterator[Located]]

_WHOLE_TEXT = 2**20
_PIECE = 2**13


def read_records(file: Path, fields: tuple[str, ...] = ("text",)) -> Iterator[Located]:
    """Read the records of a file; its name determines the format.

    Args:
        file: A `.txt`, `.json`, `.jsonl`, `.ndjson`, `.csv` or `.tsv` file, which may be compressed as `.gz`, `.bz2`,
            `.xz` or `.zst`, or a `.parquet`, `.arrow` or `.feather` file.
        fields: The fields that are used, by name or dotted path. The first is the text of a `.txt` file.

    Raises:
        ValueError: If the file cannot be read or has another format. The message starts with the file, and with the
            line if it is known.
    """
    return find_reader(file)(check_regular(file), fields)


def find_reader(file: Path) -> Reader:
    """Return the function that reads a file, given its name.

    Raises:
        ValueError: If the ending of the name is unknown.
    """
    reader = _READERS.get(ending_of(file))
    if reader is None:
        known = f"{', '.join(_TEXTS)} (also {', '.join(COMPRESSIONS)}), {', '.join(_TABLES)}"
        raise ValueError(f"{printable(str(file))}: unknown kind of file; known endings are {known}")
    return reader


def ending_of(file: Path) -> str:
    """Return the ending of a file's name in lower case, without that of a compression."""
    name = Path(file.name.lower())
    return Path(name.stem).suffix if name.suffix in COMPRESSIONS else name.suffix


def _read_text(file: Path, fields: tuple[str, ...]) -> Iterator[Located]:
    try:
        with open_text(file) as (stream, done):
            start = stream.read(_WHOLE_TEXT + 1)
            if len(start) <= _WHOLE_TEXT:
                text = io.TextIOWrapper(io.BytesIO(start), encoding="utf-8").read()
                yield {fields[0]: text}, f"{printable(str(file))}: piece 1", done()
                return
        with open_text(file) as (stream, done), io.TextIOWrapper(stream, encoding="utf-8") as long_text:
            for number, text in enumerate(_pieces(long_text), 1):
                yield {fields[0]: text}, f"{printable(str(file))}: piece {number}", done()
    except UnicodeDecodeError as error:
        raise not_utf8(file) from error


def _pieces(stream: IO[str]) -> Iterator[str]:
    """Cut a long text at blank lines, or at any line if there are none, into pieces of about 8 thousand characters."""
    lines: list[str] = []
    size = 0
    while line := stream.readline(_PIECE):
        lines.append(line)
        size += len(line)
        if size >= 2 * _PIECE or (size >= _PIECE and line.isspace()):
            yield "".join(lines)
            lines, size = [], 0
    if lines:
        yield "".join(lines)


_TEXTS: dict[str, Reader] = {
    ".txt": _read_text,
    ".json": read_json,
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
}
_TABLES: dict[str, Reader] = {".parquet": read_parquet, ".arrow": read_arrow, ".feather": read_arrow}
_READERS = _TEXTS | _TABLES
