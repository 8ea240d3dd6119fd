"""Records from tables: CSV, parquet and Arrow files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from worldlm.data.streams import Located, not_utf8, open_text, unreadable
from worldlm.topology.errors import first_line, printable

_ROWS = 256
_LONGEST_CELL = 2**31 - 1
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def read_csv(file: Path, fields: tuple[str, ...]) -> Iterator[Located]:
    """Yield the rows of a table with a header, whose cells are separated by commas, or by tabs in a `.tsv` file."""
    name = printable(str(file))
    csv.field_size_limit(_LONGEST_CELL)
    with open_text(file) as (stream, done), io.TextIOWrapper(stream, encoding="utf-8", newline="") as text:
        rows = csv.reader(text, delimiter="\t" if ".tsv" in file.name.lower() else ",", strict=True)
        try:
            header, line = next(rows, []), rows.line_num + 1
            for row in rows:
                if row and len(row) != len(header):
                    raise ValueError(f"{name}:{line}: the row has {len(row)} cells, and the header {len(header)}")
                if row:
                    yield dict(zip(header, row, strict=True)), f"{name}:{line}", done()
                line = rows.line_num + 1
        except UnicodeDecodeError as error:
            raise not_utf8(file) from error
        except csv.Error as error:
            raise ValueError(f"{name}:{line}: not CSV ({error})") from error


def read_parquet(file: Path, fields: tuple[str, ...]) -> Iterator[Located]:
    """Yield the rows of a parquet file."""
    import pyarrow  # type: ignore[import-untyped, unused-ignore]
    from pyarrow import parquet  # type: ignore[import-untyped, unused-ignore]

    try:
        table = parquet.ParquetFile(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise unreadable(file, error) from error
    with table:
        batches = table.iter_batches(columns=_columns(fields, table.schema_arrow.names), batch_size=_ROWS)
        number, size = 0, max(table.metadata.num_rows, 1)
        yield from _rows(file, ((batch, (number := number + batch.num_rows) / size) for batch in batches))


def read_arrow(file: Path, fields: tuple[str, ...]) -> Iterator[Located]:
    """Yield the rows of an Arrow or Feather file, or of an Arrow stream, such as `datasets` saves."""
    import pyarrow
    from pyarrow import ipc

    try:
        source = pyarrow.OSFile(str(file))
        is_file = source.read(6) == b"ARROW1"
        if not is_file and not _has_end(source):
            raise OSError("it is no Arrow file, or its end is missing")
        source.seek(0)
        reader = ipc.open_file(source) if is_file else ipc.open_stream(source)
    except (OSError, pyarrow.ArrowException) as error:
        raise unreadable(file, error) from error
    with source, reader:
        columns = _columns(fields, reader.schema.names)
        if is_file:
            size = reader.num_record_batches
            batches = ((reader.get_batch(number), (number + 1) / size) for number in range(size))
        else:
            batches = ((batch, source.tell() / source.size()) for batch in reader)
        yield from _rows(file, ((batch.select(columns), done) for batch, done in batches))


def _has_end(source: Any) -> bool:
    """Return whether an Arrow stream ends with its mark. Without it, the stream may have been cut between batches."""
    start = source.size() - len(_END_OF_STREAM)
    return start > 0 and bool(source.read_at(len(_END_OF_STREAM), start) == _END_OF_STREAM)


def _columns(fields: tuple[str, ...], names: list[str]) -> list[str]:
    """Return the columns of the fields, or all if one is missing; `a.b` may be field b within column a."""
    columns = [
        field if field in names else next((name for name in names if field.startswith(f"{name}.")), None)
        for field in fields
    ]
    return names if None in columns else [column for column in dict.fromkeys(columns) if column is not None]


def _rows(file: Path, batches: Iterable[tuple[Any, float]]) -> Iterator[Located]:
    """Yield the rows of batches, each given with the fraction of the file up to its end."""
    import pyarrow

    name, number = printable(str(file)), 0
    try:
        for batch, done in batches:
            for start in range(0, batch.num_rows, _ROWS):
                for row in batch.slice(start, _ROWS).to_pylist():
                    number += 1
                    yield row, f"{name}: row {number}", done
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{name}: row {number + 1}: cannot be read ({first_line(error)})") from error
