"""Perplexities as text, means over nodes, and nodes that ended far worse than they began."""

import math
from pathlib import Path
from typing import Any

import pytest

from worldlm.runs.results import RunRecord
from worldlm.runs.scores import best_mean, far_worse, is_far_worse, largest_first, mean_text, score_text, scored


def record(*rounds: dict[str, dict[str, float | None]]) -> RunRecord:
    """A star of a, b and c; a round has each node's perplexities by moment."""
    leaves = [{"name": name, "corpus": name, "children": []} for name in "abc"]
    content: dict[str, Any] = {
        "topology": {"name": "star", "root": {"name": "world", "corpus": None, "children": leaves}},
        "rounds": [
            {
                "round": number,
                "nodes": {
                    name: {moment: {"perplexity": value, "bits_per_byte": None} for moment, value in scores.items()}
                    for name, scores in nodes.items()
                },
            }
            for number, nodes in enumerate(rounds)
        ],
    }
    return RunRecord(method="m", folder=Path(), content=content)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (9.876, "9.88"),
        (50257.0, "50,257.00"),
        (2732394574908.83, "2.7e+12"),
        (1.0142e304, "inf"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_a_perplexity_is_short_however_large_it_is(value: float, text: str) -> None:
    assert score_text(value) == text


def test_a_mean_states_how_many_nodes_have_a_value() -> None:
    assert [mean_text(8.0, 4, 4), mean_text(8.0, 3, 4), mean_text(None, 0, 4)] == ["8.00", "8.00 (3 of 4 nodes)", ""]


def test_means_are_over_the_nodes_that_have_a_score_in_all_runs() -> None:
    both, scores = {"after_merge": 4.0, "after_fit": 2.0}, {"after_merge": 6.0}
    listening = record({"a": both, "b": {"after_merge": 8.0, "after_fit": 6.0}, "c": scores})
    training, pooled = record(dict.fromkeys("abc", both)), record(dict.fromkeys("abc", scores))
    assert (
        scored([listening], "abc", "after_fit")
        == scored([listening, training, pooled], "abc", "after_fit")
        == ["a", "b"]
    )
    assert scored([listening, training], "abc", "after_merge") == ["a", "b", "c"]
    assert scored([pooled], "abc", "after_fit") == []
    assert best_mean(listening, "abc", "after_fit") == (4.0, 2)
    assert best_mean(listening, "abc", "after_merge") == (6.0, 3)
    assert best_mean(pooled, "abc", "after_fit") == (None, 0)


def test_a_perplexity_of_null_is_infinite_and_not_that_of_an_earlier_round() -> None:
    lost = record({"a": {"after_merge": 4.0}}, {"a": {"after_merge": None}})
    assert lost.last("a", "after_merge") == math.inf
    assert lost.best("a", "after_merge") == 4.0
    assert lost.last("a", "after_merge", "bits_per_byte") is None


@pytest.mark.parametrize(
    ("before", "last", "expected"),
    [
        (100.0, (200.0, None), False),
        (100.0, (201.0, 5.0), True),
        (100.0, (5.0, 201.0), True),
        (None, (201.0, None), False),
        (None, (math.inf, 5.0), True),
        (100.0, (5.0, math.nan), True),
        (100.0, (None, None), False),
    ],
)
def test_far_worse_is_above_twice_the_first_perplexity(
    before: float | None, last: tuple[float | None, float | None], expected: bool
) -> None:
    assert is_far_worse(before, *last) is expected


def test_nodes_that_ended_far_worse_are_named_parents_first() -> None:
    run = record(
        {
            "c": {"before": 10.0, "after_merge": None},
            "a": {"before": 10.0, "after_merge": 1e304, "after_fit": 9.0},
            "b": {"before": 10.0, "after_merge": 12.0, "after_fit": 9.0},
            "world": {"before": 10.0, "after_merge": 1e6},
        }
    )
    assert far_worse(run) == ["world", "a", "c"]


def test_attention_weights_are_shown_largest_first() -> None:
    assert largest_first({"b": 0.25, "c": 0.5, "a": 0.25}) == [("c", 0.5), ("a", 0.25), ("b", 0.25)]
