"""Files become documents, or an error line with the file and the line."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pytest
import zstandard
from pyarrow import parquet  # type: ignore[import-untyped, unused-ignore]

from worldlm.data import TextFiles
from worldlm.data.readers import find_files, read_records

DOCUMENTS = ["one", "zwei\nDrei", "четири", "2020-01-01", "\u2028 not the end of a line"]


def _read(file: Path, field: str = "text") -> list[str]:
    """Read the documents of a file, of both splits."""
    (reading,) = TextFiles(train=str(file), field=field).readings()
    return [chosen[1] for chosen in map(reading.choose, reading.source.records()) if chosen]


def _json_lines(texts: list[str]) -> bytes:
    lines = [json.dumps({"id": 7, "text": text}, ensure_ascii=False) for text in texts]
    return "\n".join([*lines, "", ""]).encode()


def _zstandard_frames(data: bytes) -> bytes:
    return zstandard.compress(data[:20]) + zstandard.compress(data[20:])


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("a.jsonl", bytes),
        ("a.json", bytes),
        ("a.jsonl.gz", gzip.compress),
        ("a.json.gz", gzip.compress),
        ("a.jsonl.zst", zstandard.compress),
        ("a.JSONL.ZST", _zstandard_frames),
    ],
)
def test_each_json_line_is_a_document(tmp_path: Path, name: str, compress: Callable[[bytes], bytes]) -> None:
    file = tmp_path / name
    file.write_bytes(compress(_json_lines(DOCUMENTS)))
    assert _read(file) == DOCUMENTS


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("first\n\nsecond", encoding="utf-8")
    assert _read(file) == ["first\n\nsecond"]


def test_a_long_text_is_cut_at_line_ends(tmp_path: Path) -> None:
    paragraphs = [f"paragraph {i}\n" + "word " * 300 + "\n\n" for i in range(900)]
    (tmp_path / "long.txt").write_text("".join(paragraphs), encoding="utf-8")
    pieces = _read(tmp_path / "long.txt")
    assert "".join(pieces) == "".join(paragraphs)
    assert all(piece.startswith("paragraph") and 2**13 <= len(piece) < 2**14 for piece in pieces[:-1])
    assert len(pieces) > 80
    (tmp_path / "line.txt").write_text("é" * 2**20, encoding="utf-8")
    assert {len(piece) for piece in _read(tmp_path / "line.txt")} == {2**14}


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt", "a.parquet"])
def test_the_fraction_that_is_read_grows_to_one(tmp_path: Path, name: str) -> None:
    file, texts = tmp_path / name, [random.Random(i).randbytes(150).hex() + "\n" for i in range(4000)]
    if name == "a.parquet":
        parquet.write_table(pa.table({"text": texts}), file)
    elif name == "a.txt":
        file.write_text("".join(texts))
    else:
        compress = {"l": bytes, "z": gzip.compress, "t": zstandard.compress}[name[-1]]
        file.write_bytes(compress(_json_lines(texts)))
    shares = [done for _, _, done in read_records(file)]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.9
    assert shares[-1] > 0.99


def test_each_parquet_row_is_a_document(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"id": [1, 2, 3, 4, 5], "body": DOCUMENTS}), file)
    assert _read(file, "body") == DOCUMENTS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n\n{"body": "y"}\n', "a.jsonl:3: no field 'text'.*'body'"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 5}\n', "a.jsonl:2: field 'text' is int, not text"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl:2: not a JSON object on one line"),
        ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl:1: not a JSON object on one line"),
        ("a.json", b'["x"]\n', "a.json:1: no field 'text'; fields are none"),
        ("a.json.gz", b'{"text": "x"}\n', "a.json.gz:1: cannot be read"),
        ("a.jsonl.gz", gzip.compress(_json_lines(DOCUMENTS))[:-9], r"a.jsonl.gz:\d: cannot be"),
        ("a.jsonl.zst", b'{"text": "x"}\n', "a.jsonl.zst:1: cannot be read"),
        ("a.txt", b"\xff", "a.txt: cannot be read as UTF-8"),
        ("a.parquet", b"x", "a.parquet: cannot be read as parquet"),
        ("a.csv", b"x", "a.csv: unknown kind of file; known endings are .txt, .json"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        _read(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "field", "message"),
    [
        (["x", "y"], "text", "a.parquet: row 1: no field 'text'; fields are 'body'"),
        (["x", None], "body", "a.parquet: row 2: field 'body' is NoneType, not text"),
    ],
)
def test_parquet_mistakes_name_file_and_row(tmp_path: Path, column: list[str | None], field: str, message: str) -> None:
    file = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"body": column}), file)
    with pytest.raises(ValueError, match=message):
        _read(file, field)


def test_patterns_find_sorted_files_each_once(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "deep/er/c.txt", "d.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    files = find_files([f"{tmp_path}/b.txt", f"{tmp_path}/**/*.txt"])
    names = [file.relative_to(tmp_path).as_posix() for file in files]
    assert names == ["b.txt", "a.txt", "deep/er/c.txt"]


@pytest.mark.parametrize("patterns", ["nowhere/*.txt", ["nowhere/*.txt"], []])
def test_a_pattern_without_files_is_a_mistake(patterns: str | list[str]) -> None:
    with pytest.raises(ValueError, match=r"nowhere/\*\.txt|empty list"):
        find_files(patterns)
