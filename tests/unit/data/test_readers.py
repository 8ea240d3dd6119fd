"""Files become documents, or one line that says what is wrong and where."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pytest
import zstandard
from pyarrow import parquet  # type: ignore[import-untyped, unused-ignore]

from worldlm.data.readers import find_files, read_documents

DOCUMENTS = ["one", "zwei\nDrei", "четири", "2020-01-01", "\u2028 not the end of a line"]


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
def test_json_lines_hold_one_document_each(tmp_path: Path, name: str, compress: Callable[[bytes], bytes]) -> None:
    file = tmp_path / name
    file.write_bytes(compress(_json_lines(DOCUMENTS)))
    assert list(read_documents(file)) == DOCUMENTS


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("first\n\nsecond", encoding="utf-8")
    assert list(read_documents(file)) == ["first\n\nsecond"]


def test_parquet_holds_one_document_a_row(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"id": [1, 2, 3, 4, 5], "body": DOCUMENTS}), file)
    assert list(read_documents(file, "body")) == DOCUMENTS


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
        list(read_documents(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "field", "message"),
    [
        (["x", "y"], "text", "a.parquet: no field 'text'; fields are 'body'"),
        (["x", None], "body", "a.parquet: row 2: field 'body' is NoneType, not text"),
    ],
)
def test_parquet_mistakes_name_file_and_row(tmp_path: Path, column: list[str | None], field: str, message: str) -> None:
    file = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"body": column}), file)
    with pytest.raises(ValueError, match=message):
        list(read_documents(file, field))


def test_patterns_find_sorted_files_each_once(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "deep/er/c.txt", "d.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_files([f"{tmp_path}/b.txt", f"{tmp_path}/**/*.txt"])
    names = [file.relative_to(tmp_path).as_posix() for file in found]
    assert names == ["b.txt", "a.txt", "deep/er/c.txt"]


@pytest.mark.parametrize("patterns", ["nowhere/*.txt", ["nowhere/*.txt"], []])
def test_no_file_is_a_mistake(patterns: str | list[str]) -> None:
    with pytest.raises(ValueError, match=r"nowhere/\*\.txt|empty list"):
        find_files(patterns)
