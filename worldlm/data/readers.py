"""Readers: documents out of text, JSON-lines and parquet files.

Files are read here rather than through `datasets`: its JSON reader turns texts that look like dates
into dates, cannot name the line of a mistake, and leaves lock files in the user's home. For data
sets of the Hugging Face Hub see `worldlm.data.hub`.
"""

from __future__ import annotations

import glob
import gzip
import io
import json
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast


def find_files(patterns: str | list[str]) -> list[Path]:
    """Expand paths and glob patterns.

    Args:
        patterns: One or more; `~` is the home folder and `**` any number of folders.

    Returns:
        The files, pattern by pattern, sorted by name within one, each once.

    Raises:
        ValueError: If a pattern matches no file.
    """
    found: dict[Path, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        names = glob.glob(str(Path(pattern).expanduser()), recursive=True)
        files = sorted(path for path in map(Path, names) if path.is_file())
        if not files:
            raise ValueError(f"no such file: {pattern} (searched from {Path.cwd()})")
        found |= dict.fromkeys(files)
    if not found:
        raise ValueError("an empty list of files; name at least one path or pattern")
    return list(found)


def read_documents(file: Path, field: str = "text") -> Iterator[str]:
    """Read the documents of one file; the format follows from its name.

    Args:
        file: A `.txt`, `.json`, `.jsonl` (both also `.gz` or `.zst`) or `.parquet` file.
        field: Name of the JSON field or parquet column with the text.

    Raises:
        ValueError: If the file cannot be read, is of another kind, or a record has no text under
            `field`. The message starts with the file, and with the line or row if it is known.
    """
    for ending, read in _READERS.items():
        if file.name.lower().endswith(ending):
            return read(file, field)
    raise ValueError(f"{file}: unknown kind of file; known endings are {', '.join(_READERS)}")


def _read_text(file: Path, field: str) -> Iterator[str]:
    try:
        yield file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read as UTF-8 text ({error})") from error


def _read_json_lines(file: Path, field: str) -> Iterator[str]:
    for number, line in _lines(file):
        if line.isspace():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file}:{number}: not a JSON object on one line ({error})") from error
        yield text_of(record if isinstance(record, dict) else {}, field, f"{file}:{number}")


def _read_parquet(file: Path, field: str) -> Iterator[str]:
    import pyarrow  # type: ignore[import-untyped, unused-ignore]
    from pyarrow import parquet  # type: ignore[import-untyped, unused-ignore]

    try:
        table = parquet.ParquetFile(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{file}: cannot be read as parquet ({error})") from error
    with table:
        names = table.schema_arrow.names
        if field not in names:
            text_of(dict.fromkeys(names), field, str(file))
        number = 0
        for batch in table.iter_batches(columns=[field], batch_size=1024):
            for value in batch.column(0).to_pylist():
                number += 1
                yield text_of({field: value}, field, f"{file}: row {number}")


def text_of(record: Mapping[str, object], field: str, place: str) -> str:
    """Return a record's text.

    Raises:
        ValueError: If there is none; the message starts with `place`.
    """
    value = record.get(field)
    if isinstance(value, str):
        return value
    if field not in record:
        known = ", ".join(map(repr, islice(record, 8))) or "none"
        raise ValueError(f"{place}: no field {field!r}; fields are {known}")
    raise ValueError(f"{place}: field {field!r} is {type(value).__name__}, not text")


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file, counted from 1, decompressed by the file's ending."""
    number = 0
    try:
        with _open(file) as stream:
            for line in stream:
                number += 1
                yield number, line
    except Exception as error:  # gzip, zlib and zstandard all raise kinds of their own
        raise ValueError(f"{file}:{number + 1}: cannot be read ({error})") from error


def _open(file: Path) -> BinaryIO:
    if file.suffix.lower() == ".gz":
        return cast(BinaryIO, gzip.open(file, "rb"))
    if file.suffix.lower() == ".zst":
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(file.open("rb"), read_across_frames=True, closefd=True)
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, reader)))
    return file.open("rb")


_READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _read_text,
    **{f".{kind}{end}": _read_json_lines for kind in ("json", "jsonl") for end in ("", ".gz", ".zst")},
    ".parquet": _read_parquet,
}
