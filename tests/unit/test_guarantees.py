"""What an epsilon means, in words."""

from __future__ import annotations

import math

from worldlm.runs.guarantees import meaning, meanings, warnings

UPDATES = "for all text at and below the node, towards its parent and all beyond it"
MODEL = "towards everyone who gets its model"


def test_every_meaning_is_named_once() -> None:
    nodes = [
        {"delta": 1e-5, "example_delta": None},
        {"delta": 1e-5, "example_delta": 1e-6, "example_unit": "person"},
        {"delta": None, "example_delta": 1e-6, "example_unit": "document"},
    ]
    expected = [
        f"epsilon: at delta 1e-05, {UPDATES}",
        f"example_epsilon: at delta 1e-06, for each person, with all their documents, {MODEL}",
        f"example_epsilon: at delta 1e-06, for each document, {MODEL}",
    ]
    assert meanings(nodes) == meanings(iter(nodes)) == expected
    assert meanings(nodes, ["epsilon"]) == expected[:1]


def test_what_was_not_recorded_is_left_out() -> None:
    assert meaning("example_epsilon", None) == f"for each block of text, {MODEL}"
    assert meanings([{"name": "a"}]) == []


def test_too_large_an_epsilon_is_named() -> None:
    spent = [("a", 10.0), ("b", 10.1), ("c", None), ("d", math.inf), ("b", 1.0)]
    assert warnings(spent) == ["epsilon above 10 protects little or nothing: b, c, d"]
    assert warnings([("a", 0.0), ("b", 8.0)]) == []
