"""The shards of any partition are disjoint, together they are the corpus, and they never change."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from worldlm.data import Partition, Texts
from worldlm.data.shards import make_shards

kinds = st.lists(st.sampled_from(["it", "fr", "uk", "2020"]), min_size=1, max_size=60)
sizes = st.floats(0.1, 100)


@st.composite
def partitions(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the settings of a partition in which every record has a shard."""
    num_shards = draw(st.integers(1, 7))
    drawn: dict[str, Any] = {"num_shards": num_shards}
    if draw(st.booleans()):
        drawn["sizes"] = draw(st.lists(sizes, min_size=num_shards, max_size=num_shards))
    elif draw(st.booleans()):
        drawn |= {"size_skew": draw(st.floats(0.01, 3)), "seed": draw(st.integers(0, 5))}
    if draw(st.booleans()):
        drawn |= {"by": "lang", "seed": draw(st.integers(0, 5))}
        if draw(st.booleans()):
            drawn["alpha"] = draw(st.floats(0.001, 1000))
    return drawn


@settings(max_examples=100, deadline=None)
@given(kinds=kinds, held_out=st.integers(0, 20), partition=partitions(), fraction=st.sampled_from([None, 0.3]))
def test_shards_are_disjoint_and_complete(
    kinds: list[str], held_out: int, partition: dict[str, Any], fraction: float | None
) -> None:
    train = [{"lang": kind, "text": f"train {i}"} for i, kind in enumerate(kinds)]
    validation = [{"lang": kinds[i % len(kinds)], "text": f"validation {i}"} for i in range(held_out)]
    corpus = (
        Texts(train=train, validation=validation)
        if fraction is None
        else Texts(train=train, validation_fraction=fraction)
    )
    shards = list(make_shards(Partition(corpus=corpus, **partition), "a").values())
    for split in ("train", "validation"):
        whole = list(corpus.documents(split))
        parts = [list(shard.documents(split)) for shard in shards]
        if split == "validation" and "by" not in partition:
            assert parts == [whole] * len(shards)
            continue
        assert Counter(text for part in parts for text in part) == Counter(whole)  # each text is in one shard
        assert all(
            part == [text for text in whole if text in set(part)] for part in parts
        )  # in the order of the corpus
        again = make_shards(Partition(corpus=corpus, **partition), "b").values()
        assert [list(shard.documents(split)) for shard in again] == parts


@settings(max_examples=50, deadline=None)
@given(number=st.integers(1, 400), weights=st.lists(sizes, min_size=1, max_size=7), equal=st.booleans())
def test_shards_have_the_sizes_that_were_asked_for(number: int, weights: list[float], equal: bool) -> None:
    corpus = Texts(train=[f"text {i}" for i in range(number)], validation=["held out"])
    partition = Partition(corpus=corpus, num_shards=len(weights), sizes=None if equal else weights)
    found = [len(list(shard.documents("train"))) for shard in make_shards(partition, "a").values()]
    assert sum(found) == number
    most = 1 if equal else 3
    assert all(abs(size - number * share) <= most for size, share in zip(found, partition.shares, strict=True))
