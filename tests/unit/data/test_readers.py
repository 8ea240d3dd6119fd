"""Files become documents, or an error line with the file and the line."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pytest
import zstandard
from pyarrow import feather, parquet  # type: ignore[import-untyped, unused-ignore]

from worldlm.data import TextFiles
from worldlm.data.corpora import Chosen
from worldlm.data.readers import read_records

DOCUMENTS = ["one", "zwei\nDrei", "четири", "2020-01-01", "\u2028 not the end of a line"]


def _read(file: Path, field: str = "text") -> list[str]:
    """Read the documents of a file, of both splits."""
    (reading,) = TextFiles(train=str(file), field=field).readings()
    return [chosen.text for chosen in map(reading.choose, reading.source.records()) if isinstance(chosen, Chosen)]


def _json_lines(texts: list[str]) -> bytes:
    lines = [json.dumps({"id": 7, "text": text}, ensure_ascii=False) for text in texts]
    return "\n".join([*lines, "", ""]).encode()


def _twice(compress: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Compress the two halves of a content on their own; the file is one after the other."""
    return lambda data: compress(data[: len(data) // 2]) + compress(data[len(data) // 2 :])


def _seekable(data: bytes) -> bytes:
    """Compress with frames that a reader skips, as pzstd does."""
    skipped = b"\x50\x2a\x4d\x18\x04\0\0\0" + bytes(4)
    return skipped + zstandard.compress(data) + skipped


COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("a.jsonl", bytes),
        ("a.json", bytes),
        ("a.ndjson", bytes),
        *((f"a.jsonl{ending}", compress) for ending, compress in COMPRESS.items()),
        *((f"a.JSONL{ending}".upper(), _twice(compress)) for ending, compress in COMPRESS.items()),
        ("a.jsonl.zst", _seekable),
        ("a.jsonl", gzip.compress),  # the name does not say so
        ("a.jsonl", lambda data: codecs.BOM_UTF8 + data),
        ("a.jsonl.gz", lambda data: gzip.compress(data.decode().encode("utf-16"))),
        ("a.jsonl", lambda data: data.replace(b"\n", b"\r\n")),
    ],
)
def test_each_json_line_is_a_document(tmp_path: Path, name: str, compress: Callable[[bytes], bytes]) -> None:
    file = tmp_path / name
    file.write_bytes(compress(_json_lines(DOCUMENTS)))
    assert _read(file) == DOCUMENTS


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("kind", ["jsonl", "txt", "csv"])
def test_a_compressed_file_that_is_cut_is_a_mistake(tmp_path: Path, kind: str, ending: str) -> None:
    text = "text\n" + "\n".join(random.Random(i).randbytes(40).hex() for i in range(3000))
    lines = "\n".join(json.dumps({"text": line}) for line in text.splitlines())
    whole = COMPRESS[ending](f"{lines if kind == 'jsonl' else text}\n".encode())
    file = tmp_path / f"a.{kind}{ending}"
    for size in (len(whole) // 2, len(whole) - 1, 12):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"a.{kind}{ending}: cannot be read \(it ends in the middle of its compr"):
            _read(file)
    file.write_bytes(whole + whole[:-3])
    with pytest.raises(ValueError, match="ends in the middle"):
        _read(file)
    for content in (whole + b"more", b"", b"plain"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"a.{kind}{ending}: cannot be read \("):
            _read(file)


def test_frames_of_a_large_window_are_read(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=31, enable_ldm=True, write_content_size=0)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = compressor.compress(_json_lines(DOCUMENTS)) + compressor.flush()
    assert zstandard.get_frame_parameters(data).window_size == 2**31
    (tmp_path / "a.jsonl.zst").write_bytes(data)
    assert _read(tmp_path / "a.jsonl.zst") == DOCUMENTS


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.json"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_not_text(tmp_path: Path, name: str, encoding: str) -> None:
    content = {"txt": "{}", "jsonl": '{{"text": "{}"}}\n', "csv": "text\n{}\n", "json": '[\n{{"text": "{}"}}\n]'}
    (tmp_path / name).write_text(content[name[2:]].format("river stöne"), encoding=encoding)
    assert _read(tmp_path / name) == ["river stöne"]
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "\ufeffriver stöne"}))
    corpus = TextFiles(train=str(tmp_path / "b.jsonl"), validation=str(tmp_path / name))
    assert list(corpus.documents("train")) == []


@pytest.mark.parametrize(
    "content",
    [
        json.dumps([{"text": text} for text in DOCUMENTS]),
        json.dumps([{"text": text, "n": [1.5, {"text": "no"}]} for text in DOCUMENTS], indent=2),
        "\n".join(json.dumps({"text": text}, indent=4) for text in DOCUMENTS),
        json.dumps({"version": "1", "data": [{"text": text} for text in DOCUMENTS], "list": []}),
        json.dumps({"version": "1", "data": [{"text": text} for text in DOCUMENTS]}, indent=1),
        "\n\n" + json.dumps([{"text": text} for text in DOCUMENTS]) + "\n",
    ],
)
@pytest.mark.parametrize("piece", [1, 5, 2**16])
def test_json_may_span_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, piece: int) -> None:
    monkeypatch.setattr("worldlm.data.json_reader._PIECE", piece)
    (tmp_path / "a.json").write_text(content)
    assert _read(tmp_path / "a.json") == DOCUMENTS


def test_a_json_array_is_read_item_by_item(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("w") as stream:
        stream.write("[" + ", ".join(json.dumps({"text": "x" * 1000}) for _ in range(2000)) + ", broken")
    records = read_records(tmp_path / "a.json")
    shares = [next(records)[2] for _ in range(1900)]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.2 < 0.9 < shares[-1]
    with pytest.raises(ValueError, match=r"a.json:1: not JSON \(Expecting value"):
        list(records)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
def test_each_row_of_a_csv_file_is_a_document(tmp_path: Path, name: str) -> None:
    content = io.StringIO(newline="")
    writer = csv.writer(content, delimiter="\t" if "tsv" in name else ",")
    writer.writerows([["id", "text"], *([i, text] for i, text in enumerate([*DOCUMENTS, 'a "b", c', "x" * 200_000]))])
    data = content.getvalue().encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert _read(tmp_path / name) == [*DOCUMENTS, 'a "b", c', "x" * 200_000]


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("first\n\nsecond", encoding="utf-8")
    assert _read(file) == ["first\n\nsecond"]
    file.write_bytes(b"first\r\n\r\nsecond")
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
        ("a.jsonl", b'{"text": "x"}\n\n{"body": "y"}\n', "a.jsonl:3: no field 'text'.*'body'; to leave such rec"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 5}\n', "a.jsonl:2: field 'text' is int, not text; to leave such rec"),
        ("a.jsonl", b'{"text": "x"}\n{"text": null}\n', "a.jsonl:2: field 'text' is null; .*set skip_invalid: true"),
        ("a.jsonl", b'{"text": "x"}\n{"text": NaN}\n', "a.jsonl:2: field 'text' is float, not text"),
        ("a.jsonl", b'{"text": "x"}\n["x"]\n', "a.jsonl:2: is list, not an object with the field 'text'"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl:2: not a JSON object on one line"),
        ("a.jsonl", b'{"text": "x\n{"text": "y"}\n', r"a.jsonl:1: not JSON \(Invalid control character"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', "a.jsonl:2: not UTF-8: byte 0xff after"),
        ("a.jsonl", b"\n" + b"[" * 10**5, r"a.jsonl:2: not JSON \(maximum recursion"),
        ("a.json", b'["x"]\n', "a.json:1: item 1: is str, not an object with the field 'text'"),
        ("a.json", b'[{"text": "x"},\n {"text": "y"} "z"]', """a.json:2: not JSON \\('"' instead of ',' or '\\]'"""),
        ("a.json", b'[{"text": "x"},\n', r"a.json:2: not JSON \(Expecting value; the file ends here"),
        ("a.json", b'[{"text": "x"}\n', r"a.json:2: not JSON \(the array has no end"),
        ("a.json", b'{"text":\n "x', r"a.json:1: not JSON \(Unterminated string.*; the file ends here"),
        (
            "a.jsonl",
            b'{"text": "x"},\n{"text": "y"}\n',
            r"a.jsonl:1: not JSON \(',' between objects that are in no arr",
        ),
        ("a.json", b"no JSON", r"a.json:1: not JSON \(Expecting value"),
        ("a.json.gz", b'{"text": "x"}\n', r"a.json.gz: cannot be read \(it is not compressed, although its name ends"),
        ("a.txt", "Zeile\nMüde Ärzte".encode("latin-1"), "a.txt:2: not UTF-8: byte 0xfc after 'M'; convert.*iconv"),
        ("a.txt", b"x\n" * 2**20 + b"\xff", "a.txt:1048577: not UTF-8: byte 0xff after ''"),
        ("a.txt", codecs.BOM_UTF16_LE + b"abc", r"a.txt: cannot be read as UTF-16 \("),
        ("a.csv", b"id,text\n1,a\n\n2\n", "a.csv:4: the row has 1 cells, and the header 2"),
        ("a.csv", b'id,text\n1,"a\nb\n', r"a.csv:2: not CSV \(unexpected end of data"),
        ("a.csv", b"id,text\n1,\xe4\n", "a.csv:2: not UTF-8"),
        ("a.csv", b"id;text\n1;a\n", "a.csv:2: no field 'text'; fields are 'id;text'"),
        ("a.parquet", b"x", r"a.parquet: cannot be read \("),
        ("a.arrow", b"x", r"a.arrow: cannot be read \(it is no Arrow file, or its end is missing"),
        ("a.docx", b"x", "a.docx: unknown kind of file; known endings are .txt, .json.*.zst.*, .parquet"),
        ("a.gz", b"x", "a.gz: unknown kind of file"),
        ("a\nb.jsonl", b"{\n}", r"a\\nb.jsonl:1: no field 'text'; fields are none"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        _read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_the_null_within_a_column_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"note": [{"body": "x"}, None]}), file)
    with pytest.raises(ValueError, match="a.parquet: row 2: field 'note.body' is null; to leave such"):
        _read(file, "note.body")


@pytest.mark.parametrize("kind", [pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
@pytest.mark.parametrize("name", ["a.parquet", "a.feather", "a.arrow"])
def test_tables_of_any_type_of_text(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    texts = DOCUMENTS * 200
    table, file = pa.table({"id": range(len(texts)), "body": pa.array(texts, kind)}), tmp_path / name
    if name == "a.parquet":
        parquet.write_table(table, file)
    elif name == "a.feather":
        feather.write_feather(table, file)
    else:
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    assert _read(file, "body") == texts
    shares = [done for _, _, done in read_records(file, ("body",))]
    assert shares == sorted(shares)
    assert shares[-1] > 0.9
    with pytest.raises(ValueError, match=f"{name}: row 1: no field 'text'; fields are 'id', 'body'"):
        _read(file)
    whole = file.read_bytes()
    for size in (len(whole) // 2, len(whole) - 8, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"{name}: cannot be read \("):
            _read(file, "body")


@pytest.mark.parametrize(
    ("column", "field", "message"),
    [
        ([b"x", b"\xff"], "body", "a.parquet: row 2: field 'body' is bytes, not text"),
        (["x", "y"], "text", "a.parquet: row 1: no field 'text'; fields are 'body'"),
        (["x", None], "body", "a.parquet: row 2: field 'body' is null; "),
    ],
)
def test_parquet_mistakes_name_file_and_row(tmp_path: Path, column: list[object], field: str, message: str) -> None:
    file = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"body": column}), file)
    with pytest.raises(ValueError, match=message):
        _read(file, field)
