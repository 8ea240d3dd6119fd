"""Corpora split their documents into two disjoint parts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from worldlm.data import HubDataset, Mixture, TextFiles


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
    whole = TextFiles(train=_write(tmp_path / "a.jsonl", texts), validation_fraction=0.3)
    half = TextFiles(train=_write(tmp_path / "b.jsonl", texts[50:]), validation_fraction=0.3)
    expected = [text for text in whole.documents("validation") if text in texts[50:]]
    assert list(half.documents("validation")) == expected


def test_training_documents_that_are_held_out_are_dropped(tmp_path: Path) -> None:
    corpus = TextFiles(
        train=_write(tmp_path / "a.jsonl", ["a", "b", "  ", "b", "c", ""]),
        validation=[_write(tmp_path / "b.jsonl", ["b", "d"])],
    )
    assert list(corpus.documents("train")) == ["a", "c"]
    assert list(corpus.documents("validation")) == ["b", "d"]


def test_max_documents_bounds_each_split(tmp_path: Path) -> None:
    corpus = TextFiles(
        train=_write(tmp_path / "a.jsonl", ["a", "", "b", "c"]),
        validation=_write(tmp_path / "b.jsonl", ["x", "a", "b"]),
        max_documents=2,
    )
    assert list(corpus.documents("train")) == ["b", "c"]  # "b" is held out of nothing that is used
    assert list(corpus.documents("validation")) == ["x", "a"]


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
        ({"max_documents": 0}, "max_documents is 0"),
    ],
)
@pytest.mark.parametrize(("kind", "source"), [(TextFiles, "train"), (HubDataset, "path")])
def test_settings_are_checked(
    kind: type[TextFiles | HubDataset], source: str, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**{source: "a.txt"}, **settings)  # type: ignore[arg-type]


def test_a_mixture_joins_corpora(tmp_path: Path) -> None:
    parts = [
        TextFiles(
            train=_write(tmp_path / f"{n}.jsonl", [n]),
            validation=_write(tmp_path / f"v{n}.json", ["v"]),
        )
        for n in "ab"
    ]
    mixture = Mixture(corpora=list(parts))
    assert list(mixture.documents("train")) == ["a", "b"]
    assert mixture.fingerprint() != Mixture(corpora=list(parts[:1])).fingerprint()
    with pytest.raises(ValueError, match="at least one"):
        Mixture(corpora=[])


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


def test_relative_patterns_start_from_the_given_root(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.txt").write_text("near")
    (tmp_path / "b.txt").write_text("absolute")
    corpus = TextFiles(train=["here/*.txt", str(tmp_path / "b.txt")], validation="here/a.txt")
    moved = Mixture(corpora=[corpus]).under(tmp_path)
    assert list(moved.documents("train")) == ["absolute"]
    assert list(moved.documents("validation")) == ["near"]
