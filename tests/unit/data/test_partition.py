"""A partition splits one corpus into shards that nodes name as corpora."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped, unused-ignore]
import pytest
from pyarrow import parquet  # type: ignore[import-untyped, unused-ignore]

from worldlm.data import (
    ByteTokenizer,
    Corpus,
    Mixture,
    Partition,
    Request,
    SplitName,
    StandardLibrary,
    TextFiles,
    Texts,
    gathering,
    prepare,
    preparing,
)
from worldlm.data.declared import find_wholes, split_corpora
from worldlm.data.shards import Shard, make_shards

LANGUAGES = ("it", "fr", "uk")
RECORDS = [{"lang": LANGUAGES[i % 3], "text": f"document {i}"} for i in range(300)]
HELD_OUT = [{"lang": LANGUAGES[i % 3], "text": f"held out {i}"} for i in range(60)]
TEXTS = Texts(train=RECORDS, validation=HELD_OUT)


def shards(corpus: Corpus = TEXTS, **settings: Any) -> list[Shard]:
    return list(make_shards(Partition(corpus=corpus, **settings), "a").values())


def texts(shards: list[Shard], split: SplitName = "train") -> list[list[str]]:
    return [list(shard.documents(split)) for shard in shards]


def languages(documents: Iterable[str]) -> Counter[str]:
    return Counter(LANGUAGES[int(text.split()[-1]) % 3] for text in documents)


# ---------------------------------------------------------------------- shards


def test_records_are_dealt_in_turn() -> None:
    first, second = texts(shards(Texts(train=["a", "b", "c", "d", "e"], validation=["v"]), num_shards=2))
    assert (first, second) == (["a", "c", "e"], ["b", "d"])


def test_equal_shards_share_the_held_out_text() -> None:
    held_out = [record["text"] for record in HELD_OUT]
    assert texts(shards(num_shards=2), "validation") == [held_out, held_out]
    by_hash = shards(Texts(train=RECORDS, validation_fraction=0.2), num_shards=3)
    first, second, third = texts(by_hash, "validation")
    assert first == second == third == list(by_hash[0].partition.corpus.documents("validation"))


def test_sizes_are_shares_of_the_documents() -> None:
    assert [len(found) for found in texts(shards(num_shards=3, sizes=[5, 3, 2]))] == [150, 90, 60]


def test_size_skew_draws_sizes() -> None:
    skewed = Partition(corpus=TEXTS, num_shards=4, size_skew=1.0, seed=2)
    numbers = [len(found) for found in texts(list(make_shards(skewed, "a").values()))]
    assert numbers == pytest.approx(300 * skewed.shares, abs=3)
    assert max(numbers) > 2 * min(numbers)


def test_listed_values_go_to_their_shard_and_others_are_left_out() -> None:
    one, two = shards(num_shards=2, by="lang", values=["uk", ["it", "de"]])
    assert [set(languages(found)) for found in texts([one, two])] == [{"uk"}, {"it"}]
    assert [languages(found) for found in texts([one, two], "validation")] == [{"uk": 20}, {"it": 20}]


def test_by_keeps_the_records_of_a_value_together() -> None:
    records = [{"author": f"author {i % 50}", "text": f"{i}"} for i in range(500)]
    found = texts(shards(Texts(train=records, validation_fraction=0.1), num_shards=4, by="author"))
    authors = [{int(text) % 50 for text in part} for part in found]
    assert sum(map(len, authors)) == 50 == len(set().union(*authors))
    assert all(authors)


def test_a_small_alpha_separates_values_and_a_large_one_mixes_them() -> None:
    apart = texts(shards(num_shards=3, by="lang", alpha=0.01))
    assert languages(chain.from_iterable(apart)) == dict.fromkeys(LANGUAGES, 100)
    for language in LANGUAGES:
        assert max(languages(part)[language] for part in apart) > 95
    together = texts(shards(num_shards=3, by="lang", alpha=10_000.0))
    assert all(30 < languages(part)[language] < 37 for part in together for language in LANGUAGES)


def test_held_out_text_follows_the_distribution_of_the_shard() -> None:
    records = [{"lang": LANGUAGES[i % 3], "text": f"document {i}"} for i in range(3000)]
    held_out = [{"lang": LANGUAGES[i % 3], "text": f"held out {i}"} for i in range(3000)]
    parts = shards(Texts(train=records, validation=held_out), num_shards=3, by="lang", alpha=0.5, seed=1)
    for train, validation in zip(texts(parts), texts(parts, "validation"), strict=True):
        for language in LANGUAGES:
            assert abs(languages(train)[language] - languages(validation)[language]) <= 5


def test_a_training_document_is_held_out_of_all_shards() -> None:
    records = [{"lang": "it", "text": text} for text in ("a", "b", "c")]
    held_out = [{"lang": language, "text": text} for language, text in (("it", "a"), ("uk", "b"))]
    corpus = Texts(train=records, validation=held_out, max_validation_documents=1)
    one, two = shards(corpus, num_shards=2, by="lang", values=["it", "uk"])
    assert texts([one, two]) == [["c"], []]
    assert texts([one, two], "validation") == [["a"], ["b"]]


def test_limits_are_divided_by_the_sizes() -> None:
    limited = replace(TEXTS, max_documents=100, max_tokens=1000, max_validation_documents=7)
    limits = [shard.limits() for shard in shards(limited, num_shards=3)]
    assert [limit.max_documents for limit in limits] == [34, 33, 33]
    assert [limit.max_tokens for limit in limits] == [334, 333, 333]
    assert {limit.max_validation_documents for limit in limits} == {7}
    whole = [record["text"] for record in RECORDS[:100]]
    assert sorted(chain.from_iterable(texts(shards(limited, num_shards=3)))) == sorted(whole)
    assert [shard.limits().max_tokens for shard in shards(limited, num_shards=2, sizes=[3, 1])] == [750, 250]


def test_the_standard_library_can_be_split() -> None:
    corpus = StandardLibrary(area="topics")
    found = texts(shards(corpus, num_shards=3))
    assert sorted(chain.from_iterable(found)) == sorted(corpus.documents("train"))
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_columns_of_a_table_are_read(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([{"other": 1, **record} for record in RECORDS])
    parquet.write_table(table, tmp_path / "a.parquet")
    corpus = TextFiles(train=str(tmp_path / "a.parquet"))
    (one,) = shards(corpus, num_shards=1, by="lang", values=["it"])
    assert set(languages(list(one.documents("train")))) == {"it"}


# ---------------------------------------------------------------------- packing


class Counting(Corpus):
    """A corpus that counts how often its text is read."""

    def __init__(self) -> None:
        self.num_readings: Counter[str] = Counter()

    def documents(self, split: SplitName) -> Iterator[str]:
        self.num_readings[split] += 1
        yield from (f"{split} {i}" for i in range(20))

    def fingerprint(self) -> str:
        return "counting"


def test_the_corpus_is_read_once_for_all_shards(tmp_path: Path) -> None:
    corpus = Counting()
    made = make_shards(Partition(corpus=corpus, num_shards=4), "a")
    packed = prepare([Request(name, shard, name) for name, shard in made.items()], ByteTokenizer(), tmp_path)
    assert corpus.num_readings == {"train": 1, "validation": 1}
    assert {name: parts["train"].num_documents for name, parts in packed.items()} == dict.fromkeys(made, 5)


class Interrupted(ByteTokenizer):
    """A tokenizer that fails at its third batch."""

    num_batches = 0

    def encode_batch(self, texts: list[str]) -> Any:
        self.num_batches += 1
        if self.num_batches == 3:
            raise KeyboardInterrupt
        return super().encode_batch(texts)


def test_an_interrupted_preparation_goes_on_with_the_same_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "_BATCH_CHARACTERS", 500)
    monkeypatch.setattr(preparing, "_SECONDS_BETWEEN_SAVES", 0)
    made = make_shards(Partition(corpus=TEXTS, num_shards=3, by="lang", alpha=0.5, seed=1), "a")
    requests = [Request(name, shard, name) for name, shard in made.items()]
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            prepare(requests, Interrupted(), tmp_path / "one")
    packed, whole = (prepare(requests, ByteTokenizer(), tmp_path / name) for name in ("one", "other"))
    for name, splits in whole.items():
        for split, corpus in splits.items():
            assert packed[name][split].tokens.tolist() == corpus.tokens.tolist()
            assert packed[name][split].values == corpus.values
    assert sum((Counter(splits["train"].values) for splits in packed.values()), Counter()).keys() == set(LANGUAGES)


def test_left_out_records_are_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [*RECORDS, {"text": "no language"}, {"lang": "it", "text": ""}]
    corpus = Texts(train=records, validation=HELD_OUT, skip_invalid=True)
    made = make_shards(Partition(corpus=corpus, num_shards=2, by="lang", alpha=100.0), "a")
    prepare([Request(name, shard, name) for name, shard in made.items()], ByteTokenizer(), tmp_path)
    printed = capsys.readouterr().err
    assert printed.count("1 without the field") == 1
    assert printed.count("1 empty") == 1


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"text": "x"}, "no field 'lang'; fields are 'text'"),
        ({"text": "x", "lang": None}, "field 'lang' is None, which is not a single value"),
        ({"text": "x", "lang": ["it", "fr"]}, "field 'lang' is ['it', 'fr'], which is not a single value"),
    ],
)
def test_a_record_without_a_value_is_an_error(tmp_path: Path, record: dict[str, Any], problem: str) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*RECORDS, record]))
    made = make_shards(Partition(corpus=TextFiles(train=str(tmp_path / "a.jsonl")), num_shards=2, by="lang"), "a")
    with pytest.raises(ValueError) as caught:
        prepare([Request(name, shard, f"corpus {name!r}") for name, shard in made.items()], ByteTokenizer(), tmp_path)
    assert "a.jsonl:301: " in str(caught.value)
    assert problem in str(caught.value)
    assert "to leave such records out, set skip_invalid: true" in str(caught.value)


def test_an_empty_shard_says_what_would_help(tmp_path: Path) -> None:
    made = make_shards(Partition(corpus=TEXTS, num_shards=2, by="lang", values=["it", "de"]), "a")
    with pytest.raises(ValueError) as caught:
        prepare([Request(name, shard, name) for name, shard in made.items()], ByteTokenizer(), tmp_path)
    expected = "a_2 (train): there are no train documents; shard 2 of 2 gets none: it takes records whose lang is 'de'"
    assert str(caught.value) == expected


def test_the_fingerprint_depends_on_every_setting() -> None:
    corpus = replace(TEXTS, max_tokens=1000)
    partitions = [
        Partition(corpus=TEXTS, num_shards=2),
        Partition(corpus=corpus, num_shards=2),
        Partition(corpus=TEXTS, num_shards=3),
        Partition(corpus=TEXTS, num_shards=2, sizes=[1, 2]),
        Partition(corpus=TEXTS, num_shards=2, size_skew=1.0),
        Partition(corpus=TEXTS, num_shards=2, size_skew=1.0, seed=1),
        Partition(corpus=TEXTS, num_shards=2, by="lang"),
        Partition(corpus=TEXTS, num_shards=2, by="text"),
        Partition(corpus=TEXTS, num_shards=2, by="lang", alpha=1.0),
        Partition(corpus=TEXTS, num_shards=2, by="lang", alpha=2.0),
        Partition(corpus=TEXTS, num_shards=2, by="lang", values=["it", "fr"]),
        Partition(corpus=TEXTS, num_shards=2, by="lang", values=["fr", "it"]),
    ]
    prints = [shard.fingerprint() for partition in partitions for shard in make_shards(partition, "a").values()]
    assert len(set(prints)) == len(prints) == 25
    again = make_shards(replace(partitions[0]), "other name")
    assert [shard.fingerprint() for shard in again.values()] == prints[:2]


# ---------------------------------------------------------------------- recipes


def test_a_recipe_names_the_shards() -> None:
    corpora: dict[str, Corpus] = {"it": Partition(corpus=TEXTS, num_shards=2), "fr": TEXTS}
    wholes = find_wholes(corpora, {}, Path("."))
    assert wholes == {"it": TEXTS, "fr": TEXTS}
    assert list(split_corpora(corpora, wholes)) == ["it_1", "it_2", "fr"]


def test_local_files_and_the_root_apply_to_the_corpus_that_is_split() -> None:
    corpora: dict[str, Corpus] = {"it": Partition(corpus=TextFiles(train="it.jsonl", max_tokens=10), num_shards=2)}
    assert find_wholes(corpora, {}, Path("/text")) == {"it": TextFiles(train="it.jsonl", max_tokens=10, root="/text")}
    local = find_wholes(corpora, {"it": "mine.jsonl"}, Path("/text"))
    assert local == {"it": TextFiles(train="mine.jsonl", max_tokens=10, root="/text")}
    shard = split_corpora(corpora, local)["it_2"]
    assert isinstance(shard, Shard)
    assert shard.partition.corpus == local["it"]


@pytest.mark.parametrize("names", [("it", "it_2"), ("it_2", "it")])
def test_a_shard_with_the_name_of_another_corpus_is_an_error(names: tuple[str, str]) -> None:
    known: dict[str, Corpus] = {"it": Partition(corpus=TEXTS, num_shards=2), "it_2": TEXTS}
    corpora = {name: known[name] for name in names}
    with pytest.raises(ValueError, match="corpus 'it_2' is declared, and is also a shard of the partition 'it'"):
        split_corpora(corpora, find_wholes(corpora, {}, Path(".")))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"num_shards": 0}, "num_shards is 0; it must be from 1 to 100,000"),
        ({"num_shards": 2, "sizes": [1, 2, 3]}, "sizes has 3 numbers for 2 shards"),
        ({"num_shards": 2, "sizes": [1, 0]}, r"sizes is \[1, 0\]; all must be numbers above 0"),
        ({"num_shards": 2, "size_skew": -1}, "size_skew is -1; it must be from 0 to 10"),
        ({"num_shards": 2, "sizes": [1, 2], "size_skew": 1}, "size_skew has no effect, because sizes is given"),
        ({"num_shards": 2, "alpha": 1.0}, "alpha needs by: name the field"),
        ({"num_shards": 2, "values": ["a", "b"]}, "values needs by: name the field"),
        ({"num_shards": 2, "by": "lang", "alpha": 0.0}, "alpha is 0.0; it must be a number above 0"),
        ({"num_shards": 2, "by": "lang", "values": ["it"]}, "values has 1 entries for 2 shards"),
        ({"num_shards": 2, "by": "lang", "values": ["it", ["fr", "it"]]}, "values has 'it' more than once"),
        ({"num_shards": 2, "by": "lang", "values": ["it", []]}, "values has an empty list"),
        ({"num_shards": 2, "by": "lang", "values": ["it", "fr"], "alpha": 1.0}, "alpha has no effect"),
        ({"num_shards": 2, "by": "lang", "values": ["it", "fr"], "sizes": [1, 2]}, "sizes and size_skew have no"),
        ({"num_shards": 2, "seed": 5}, "seed has no effect, because nothing is drawn"),
        ({"num_shards": 2, "corpus": StandardLibrary(area="topics"), "by": "lang"}, "StandardLibrary has no records"),
        ({"num_shards": 2, "corpus": Mixture()}, "corpus is a Mixture itself; name the text to split"),
        ({"num_shards": 2, "corpus": Partition(corpus=TEXTS, num_shards=2)}, "corpus is a Partition itself"),
        ({"num_shards": 5, "corpus": replace(TEXTS, max_documents=4)}, "max_documents of the corpus is 4, less than"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Partition(**{"corpus": TEXTS, **settings})
