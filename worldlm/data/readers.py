"""Readers: records from text, JSON-lines and parquet files.

These readers replace those of `datasets`. Its JSON reader turns texts that look like dates into dates, does not report
the line of a mistake, and leaves lock files in the user's home. For data sets of the Hugging Face Hub see
`worldlm.data.hub`.
"""

from __future__ import annotations

import glob
import gzip
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, BinaryIO, TypeAlias, cast

from worldlm.files.regular import check_regular

Located: TypeAlias = tuple[Mapping[str, object], str, float]
"""A record, its position, and the fraction of the file that is read, from 0 to 1."""

_WHOLE_TEXT = 2**20
_PIECE = 2**13


def find_files(patterns: str | list[str]) -> list[Path]:
    """Expand paths and glob patterns.

    Args:
        patterns: One pattern or several; `~` is the home folder and `**` any number of folders.

    Returns:
        The files, each once, in the order of the patterns and sorted by name within a pattern.

    Raises:
        ValueError: If a pattern matches no file, or only pipes and devices.
    """
    unique: dict[Path, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        names = glob.glob(str(Path(pattern).expanduser()), recursive=True)
        files = sorted(path for path in map(Path, names) if path.is_file())
        if not files:
            for name in names:
                check_regular(Path(name))
            raise ValueError(f"no such file: {pattern} (searched from {Path.cwd()})")
        unique |= dict.fromkeys(files)
    if not unique:
        raise ValueError("an empty list of files; name at least one path or pattern")
    return list(unique)


def read_records(file: Path, fields: tuple[str, ...] = ("text",)) -> Iterator[Located]:
    """Read the records of a file; its name determines the format.

    Args:
        file: A `.txt`, `.json`, `.jsonl` (both also `.gz` or `.zst`) or `.parquet` file.
        fields: The fields that are used, by name or dotted path. The first is the text of a `.txt` file.

    Raises:
        ValueError: If the file cannot be read or has another format. The message starts with the file, and with the
            line if it is known.
    """
    check_regular(file)
    for ending, read in _READERS.items():
        if file.name.lower().endswith(ending):
            return read(file, fields)
    raise ValueError(f"{file}: unknown kind of file; known endings are {', '.join(_READERS)}")


def _read_text(file: Path, fields: tuple[str, ...]) -> Iterator[Located]:
    try:
        with file.open("rb") as raw, io.TextIOWrapper(raw, encoding="utf-8") as stream:
            size = max(file.stat().st_size, 1)
            pieces = [stream.read()] if size <= _WHOLE_TEXT else _pieces(stream)
            for number, text in enumerate(pieces, 1):
                yield {fields[0]: text}, f"{file}: piece {number}", min(raw.tell() / size, 1.0)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read as UTF-8 text ({error})") from error


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
    yield "".join(lines)


def _read_json_lines(file: Path, fields: tuple[str, ...]) -> Iterator[Located]:
    for number, line, done in _lines(file):
        if line.isspace():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}:{number}: not a JSON object on one line ({error})") from error
        yield record if isinstance(record, dict) else {}, f"{file}:{number}", done


def _read_parquet(file: Path, fields: tuple[str, ...]) -> Iterator[Located]:
    import pyarrow  # type: ignore[import-untyped, unused-ignore]
    from pyarrow import parquet  # type: ignore[import-untyped, unused-ignore]

    try:
        table = parquet.ParquetFile(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{file}: cannot be read as parquet ({error})") from error
    with table:
        names = table.schema_arrow.names
        columns = [_column(field, names) for field in fields]
        size = max(table.metadata.num_rows, 1)
        number = 0
        try:
            for batch in table.iter_batches(columns=names if None in columns else columns, batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield row, f"{file}: row {number}", number / size
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(f"{file}: row {number + 1}: cannot be read ({error})") from error


def _column(field: str, names: list[str]) -> str | None:
    """Return the column of a field; `a.b` may be field b within column a."""
    return field if field in names else next((name for name in names if field.startswith(f"{name}.")), None)


def _lines(file: Path) -> Iterator[tuple[int, bytes, float]]:
    """Yield (line number from 1, line, fraction of the file that is read); decompress by the ending of the name."""
    number = 0
    try:
        size = max(file.stat().st_size, 1)
        with file.open("rb") as raw, _decompress(file, raw) as stream:
            for line in stream:
                number += 1
                yield number, line, min(raw.tell() / size, 1.0)
    except Exception as error:  # gzip, zlib and zstandard each raise their own classes
        raise ValueError(f"{file}:{number + 1}: cannot be read ({error})") from error


def _decompress(file: Path, raw: BinaryIO) -> BinaryIO:
    if file.suffix.lower() == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if file.suffix.lower() == ".zst":
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, reader)))
    return raw


_READERS: dict[str, Callable[[Path, tuple[str, ...]], Iterator[Located]]] = {
    ".txt": _read_text,
    **{f".{kind}{end}": _read_json_lines for kind in ("json", "jsonl") for end in ("", ".gz", ".zst")},
    ".parquet": _read_parquet,
}
