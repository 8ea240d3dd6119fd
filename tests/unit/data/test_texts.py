"""Text in memory as a corpus."""

from __future__ import annotations

from typing import Any

import datasets
import pytest

from worldlm.data import Texts

SENTENCES = [f"sentence {number}" for number in range(40)]


@pytest.mark.parametrize(
    "train",
    [SENTENCES, [{"text": text} for text in SENTENCES], datasets.Dataset.from_dict({"text": SENTENCES})],
    ids=["texts", "dicts", "dataset"],
)
def test_documents_of_texts_in_memory(train: Any) -> None:
    corpus = Texts(train=train, validation_fraction=0.3)
    split = {name: [*corpus.documents(name)] for name in ("train", "validation")}  # type: ignore[arg-type]
    assert sorted(split["train"] + split["validation"]) == sorted(SENTENCES)
    assert all(split.values())
    given = Texts(train=train, validation=["held out", SENTENCES[0]], max_documents=2)
    assert [*given.documents("validation")] == ["held out", SENTENCES[0]]
    assert [*given.documents("train")] == SENTENCES[1:3]


def test_the_fingerprint_depends_on_all_texts_and_settings() -> None:
    corpora = [
        Texts(train=SENTENCES),
        Texts(train=SENTENCES[:-1]),
        Texts(train=SENTENCES, validation=["x"]),
        Texts(train=SENTENCES, max_documents=3),
    ]
    assert len({corpus.fingerprint() for corpus in corpora}) == 4
    assert Texts(train=[*SENTENCES]).fingerprint() == corpora[0].fingerprint()


def test_a_single_text_is_no_list() -> None:
    with pytest.raises(ValueError, match="train of Texts is a str: give a list of texts"):
        Texts(train="one text")
    with pytest.raises(ValueError, match="record 1: no field 'text'; fields are 'body'"):
        [*Texts(train=["a", {"body": "b"}]).documents("train")]
