"""Corpora split their documents into two disjoint parts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow  # type: ignore[import-untyped, unused-ignore]
import pytest
from pyarrow import parquet  # type: ignore[import-untyped, unused-ignore]

from worldlm.data import HubDataset, SourceInterrupted, TextFiles


def _write(file: Path, texts: list[str]) -> str:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(file)


def test_documents_are_held_out_by_their_text(tmp_path: Path) -> None:
    texts = [f"document {i % 900}" for i in range(1000)]  # the last hundred come again
    corpus = TextFiles(train=_write(tmp_path / "a.jsonl", texts), validation_fraction=0.2)
    train, validation = list(corpus.documents("train")), list(corpus.documents("validation"))
    assert sorted(train + validation) == sorted(texts)
    assert not set(train) & set(validation)
    assert 150 < len(validation) < 250


def test_the_split_of_a_document_does_not_depend_on_the_others(tmp_path: Path) -> None:
    texts = [f"document {i}" for i in range(100)]
    unlimited = TextFiles(train=_write(tmp_path / "a.jsonl", texts), validation_fraction=0.3)
    half = TextFiles(train=_write(tmp_path / "b.jsonl", texts[50:]), validation_fraction=0.3)
    expected = [text for text in unlimited.documents("validation") if text in texts[50:]]
    assert list(half.documents("validation")) == expected


def test_training_documents_that_are_held_out_are_dropped(tmp_path: Path) -> None:
    corpus = TextFiles(
        train=_write(tmp_path / "a.jsonl", ["a", "b", "  ", "b", "c", ""]),
        validation=[_write(tmp_path / "b.jsonl", ["b", "d"])],
    )
    assert list(corpus.documents("train")) == ["a", "c"]
    assert list(corpus.documents("validation")) == ["b", "d"]


@pytest.mark.parametrize("kind", [TextFiles, HubDataset])
def test_invalid_records_can_be_left_out(tmp_path: Path, kind: type[TextFiles | HubDataset]) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    records: list[object] = [{"a": {"b": text}} for text in ("x", None, "", "y")]
    if kind is TextFiles:  # `datasets` makes a table, whose rows all have the same fields
        records += [{"a": {"b": 5}}, {"a": None}, {"a": {}}, {}, ["a"], 3]
    (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    settings: dict[str, str] = {"path": str(folder), "cache_dir": str(tmp_path / "cache")}
    if kind is TextFiles:
        settings = {"train": str(folder / "train.jsonl")}
    corpus = kind(**settings, field="a.b", skip_invalid=True, validation_fraction=1e-9)  # type: ignore[arg-type]
    assert list(corpus.documents("train")) == ["x", "y"]
    only_y = kind(**settings, field="a.b", skip_invalid=True, where={"a.b": "y"}, validation_fraction=1e-9)  # type: ignore[arg-type]
    assert list(only_y.documents("train")) == ["y"]
    with pytest.raises(ValueError, match="field 'a.b' is null; to leave such records out, set skip_invalid: true"):
        list(kind(**settings, field="a.b").documents("train"))  # type: ignore[arg-type]


def test_limits_in_documents(tmp_path: Path) -> None:
    corpus = TextFiles(
        train=_write(tmp_path / "a.jsonl", ["a", "", "b", "c", "d"]),
        validation=_write(tmp_path / "b.jsonl", ["x", "a", "b"]),
        max_documents=2,
        max_validation_documents=2,
    )
    assert list(corpus.documents("train")) == ["b", "c"]  # "b" is held out of nothing that is used
    assert list(corpus.documents("validation")) == ["x", "a"]


def test_a_corpus_ends_when_its_training_text_is_complete(tmp_path: Path) -> None:
    texts = [f"document {i}" for i in range(100)]
    path = _write(tmp_path / "a.jsonl", texts)
    corpus = TextFiles(train=path, validation_fraction=0.3, max_documents=20)
    train, validation = list(corpus.documents("train")), list(corpus.documents("validation"))
    assert sorted(train + validation, key=texts.index) == texts[: texts.index(train[-1]) + 1]
    assert len(train) == 20
    limited = TextFiles(train=path, validation_fraction=0.3, max_documents=20, max_validation_documents=3)
    assert list(limited.documents("validation")) == validation[:3]
    assert list(limited.documents("train")) == train


def test_where_selects_records_by_their_fields(tmp_path: Path) -> None:
    names = ["Pile-CC", "Github", "Wikipedia (en)", "Pile-CC"]
    records = [{"text": f"{i}", "meta": {"pile_set_name": name}, "a.b": i % 2 == 0} for i, name in enumerate(names)]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))

    def keep(**settings: object) -> list[str]:
        corpus = TextFiles(train=str(file), **settings)  # type: ignore[arg-type]
        return sorted([*corpus.documents("train"), *corpus.documents("validation")])

    assert keep(where={"meta.pile_set_name": "Pile-CC"}) == ["0", "3"]
    assert keep(where={"meta.pile_set_name": ["Github", "Wikipedia (en)"]}) == ["1", "2"]
    assert keep(field="meta.pile_set_name", where={"text": ["1", "2"]}) == ["Github", "Wikipedia (en)"]
    assert keep(where={"meta.set": "Github"}) == []
    assert "but in the first 4 records meta.set is missing" in TextFiles(
        train=str(file), where={"meta.set": "Github"}
    ).why_empty(0)
    with pytest.raises(ValueError, match=r"a.jsonl:1: where: field 'meta' is a mapping; .* 'meta.pile_set_name'"):
        keep(where={"meta": "Github"})
    why = TextFiles(train=str(file), where={"meta.pile_set_name": "github"}).why_empty(0)
    assert "in the first 4 records meta.pile_set_name is 'Github', 'Pile-CC', 'Wikipedia (en)'" in why


_VALUES = {
    "list": ["x", "y"],
    "nested list": [["x"], [2020]],
    "objects": [{"name": "x"}, {"name": None}, {"other": 1}],
    "integer": 2020,
    "real": 2020.0,
    "text": "2020",
    "fraction": 0.5,
    "true": True,
    "null": None,
    "empty": [],
    "parent": {"child": None},
    "orphan": None,
}


@pytest.mark.parametrize(
    ("name", "required", "kept"),
    [
        ("list", "y", True),
        ("list", "['x', 'y']", False),
        ("list", ["a", "x"], True),
        ("nested list", "2020", True),
        ("objects.name", "x", True),
        ("objects.other", "1", True),
        ("integer", "2020", True),
        ("integer", "02020", False),
        ("real", "2020", True),
        ("real", "2020.0", True),
        ("text", "2020", True),
        ("text", "2020.0", False),
        ("fraction", "0.5", True),
        ("true", "true", True),
        ("true", "True", True),
        ("true", "1", False),
        ("null", "null", False),
        ("null", "None", False),
        ("empty", "", False),
        ("parent.child", "x", False),
        ("orphan.child", "x", False),
        ("missing", "x", False),
        ("text.child", "x", False),
    ],
)
def test_where_compares_any_value_as_text(name: str, required: str | list[str], kept: bool, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"body": "a", **_VALUES}) + "\n")
    corpus = TextFiles(train=str(tmp_path / "a.jsonl"), field="body", where={name: required})
    assert [*corpus.documents("train"), *corpus.documents("validation")] == ["a"] * kept


def test_where_compares_dates_and_decimals_of_parquet(tmp_path: Path) -> None:
    midnight = datetime(2024, 1, 31)
    columns = {"text": ["a"], "day": [midnight.date()], "at": [midnight], "price": [Decimal("1.50")], "tags": [["x"]]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    found = {"day": "2024-01-31", "at": ["2024-01-31 00:00:00"], "price": "1.50", "tags": "x"}
    for where in (found, {"at": "2024-01-31T00:00:00"}):
        corpus = TextFiles(train=str(tmp_path / "a.parquet"), where=where)  # type: ignore[arg-type]
        assert [*corpus.documents("train"), *corpus.documents("validation")] == ["a"]
    why = TextFiles(train=str(tmp_path / "a.parquet"), where={"day": "31.1.2024"}).why_empty(0)
    assert why.endswith("in the first 1 records day is 2024-01-31")


def test_corpora_that_differ_only_in_where_share_their_source(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", ["a"])
    first, second = TextFiles(train=path, where={"text": "a"}), TextFiles(train=path, where={"text": "b"}, max_tokens=4)
    assert first.source("train") == second.source("train")
    assert hash(first.source("train")) == hash(second.source("train"))
    assert first.source("train") != TextFiles(train=path, field="body").source("train")
    hub = HubDataset(path="pile", where={"meta.pile_set_name": "Pile-CC"}, data_files={"train": ["a", "b"]})
    again = HubDataset(path="pile", where={"meta.pile_set_name": "Github"}, data_files={"train": ["a", "b"]})
    assert hub.source("train") == again.source("train")
    assert hash(hub.source("train")) == hash(again.source("train"))
    assert hub.source("train") != HubDataset(path="pile").source("train")


def test_the_fingerprint_follows_settings_and_files(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", ["a"])
    first = TextFiles(train=path).fingerprint()
    assert TextFiles(train=path).fingerprint() == first
    assert TextFiles(train=path, max_documents=3).fingerprint() != first
    os.utime(path, ns=(1, 1))
    touched = TextFiles(train=path).fingerprint()
    assert touched != first
    _write(tmp_path / "a.jsonl", ["ab"])
    os.utime(path, ns=(1, 1))
    assert TextFiles(train=path).fingerprint() not in (first, touched)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_fraction": 1.0}, r"validation_fraction is 1.0; it must be in \(0, 1\)"),
        ({"validation_fraction": 0.1, "validation": "b.txt"}, "no effect"),
        ({"max_documents": 0}, "max_documents is 0; it must be at least 1, or null"),
        ({"max_tokens": -1}, "max_tokens is -1"),
        ({"max_validation_documents": 0}, "max_validation_documents is 0"),
    ],
)
@pytest.mark.parametrize(("kind", "source"), [(TextFiles, "train"), (HubDataset, "path")])
def test_settings_are_checked(
    kind: type[TextFiles | HubDataset], source: str, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**{source: "a.txt"}, **settings)  # type: ignore[arg-type]


def test_pickled_data_frames_are_rejected() -> None:
    with pytest.raises(ValueError, match="path is 'pandas', whose files are pickles"):
        HubDataset(path="pandas", data_files={"train": "a.pkl"})


def test_a_folder_is_read_as_a_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    _write(folder / "train.jsonl", ["a", "b", "c"])
    _write(folder / "validation.jsonl", ["b"])
    cache = str(tmp_path / "cache")
    corpus = HubDataset(path=str(folder), validation="validation", cache_dir=cache)
    assert list(corpus.documents("train")) == ["a", "c"]
    assert list(corpus.documents("validation")) == ["b"]
    with pytest.raises(ValueError, match="split 'train', row 1: no field 'body'; fields are 'text'"):
        list(HubDataset(path=str(folder), field="body", cache_dir=cache).documents("train"))
    with pytest.raises(ValueError, match="split 'dev': .*dev"):
        list(HubDataset(path=str(folder), train="dev", cache_dir=cache).documents("train"))
    downloaded = HubDataset(path=str(folder), validation="validation", cache_dir=cache, streaming=False)
    assert list(downloaded.documents("train")) == ["a", "c"]


def test_files_of_a_data_set_can_be_named_instead_of_a_configuration(tmp_path: Path) -> None:
    _write(tmp_path / "c4-it-1.json", ["a", "b"])
    _write(tmp_path / "c4-it-2.json", ["c"])
    _write(tmp_path / "c4-it-validation.json", ["v"])
    files: dict[str, str | list[str]] = {"train": ["c4-it-1.json", "c4-it-2.json"], "held": "c4-it-val*.json"}
    corpus = HubDataset(path=str(tmp_path), data_files=files, validation="held", cache_dir=str(tmp_path / "cache"))
    assert list(corpus.documents("train")) == ["a", "b", "c"]
    assert list(corpus.documents("validation")) == ["v"]
    with pytest.raises(ValueError, match="data_files is for the splits train, held; it must be for train"):
        HubDataset(path="x", data_files=files)


def test_an_unreachable_hub_is_reported_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("[Errno -2] Name or service not known\nand more") from ConnectionError()

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    with pytest.raises(SourceInterrupted) as caught:
        list(HubDataset(path="allenai/c4").documents("train"))
    assert str(caught.value) == (
        "data set 'allenai/c4', split 'train': the Hugging Face Hub cannot be reached "
        "([Errno -2] Name or service not known)"
    )


def test_the_error_of_a_lost_connection_says_how_to_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Iterator[dict[str, str]]:
        yield {"text": "a"}
        raise TimeoutError

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)
    monkeypatch.setattr("datasets.load_dataset", lambda **_: rows())
    documents = HubDataset(path="allenai/c4", validation_fraction=1e-9).documents("train")
    assert next(documents) == "a"
    with pytest.raises(
        SourceInterrupted, match=r"row 2: the Hugging Face Hub cannot be reached \(Timeout.*run again to continue"
    ):
        next(documents)


def test_the_names_of_files_and_root_are_no_patterns(tmp_path: Path) -> None:
    root = tmp_path / "data [v2]"
    root.mkdir()
    _write(root / "a[1].jsonl", ["x"])
    _write(root / "a1.jsonl", ["y"])
    corpus = TextFiles(train="a[1].jsonl", validation="a?.jsonl", root="[v2]").under(tmp_path)
    assert corpus.root == str(tmp_path / "[v2]")
    corpus = TextFiles(train="a[1].jsonl", validation="a?.jsonl").under(root)
    assert list(corpus.documents("train")) == ["x"]
    assert list(corpus.documents("validation")) == ["y"]


def test_relative_patterns_start_from_the_given_root(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.txt").write_text("near")
    (tmp_path / "b.txt").write_text("absolute")
    corpus = TextFiles(train=["here/*.txt", str(tmp_path / "b.txt")], validation="here/a.txt")
    moved = corpus.under(tmp_path)
    assert list(moved.documents("train")) == ["absolute"]
    assert list(moved.documents("validation")) == ["near"]
