"""A mixture lists the names of its corpora."""

from __future__ import annotations

import math
from typing import Any

import pytest

from worldlm.data import Mixture, StandardLibrary

KNOWN = {
    "topics": StandardLibrary(area="topics"),
    "all": Mixture(),
    "network": StandardLibrary(area="network"),
    "tools": StandardLibrary(area="tools"),
}


def test_without_names_it_mixes_all_corpora_with_text() -> None:
    assert Mixture().members(KNOWN) == ["topics", "network", "tools"]


def test_names_keep_the_order_of_their_weights() -> None:
    assert Mixture(corpora=["tools", "topics"], weights=[2, 1]).members(KNOWN) == ["tools", "topics"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corpora": []}, "corpora is empty"),
        ({"corpora": ["a", ""]}, "an empty name at position 2"),
        ({"corpora": ["a", "b", "a"]}, "names a more than once"),
        ({"weights": [1.0, 2.0]}, "weights needs corpora"),
        ({"corpora": ["a", "b"], "weights": [1.0]}, "1 numbers for 2 corpora"),
        ({"corpora": ["a", "b"], "weights": [1.0, 0.0]}, "weights gives b 0.0; it must be a positive number"),
        ({"corpora": ["a", "b"], "weights": [-0.5, 1.0]}, "weights gives a -0.5"),
        ({"corpora": ["a", "b"], "weights": [1.0, math.inf]}, "weights gives b inf"),
        ({"corpora": ["a", "b"], "weights": [math.nan, 1.0]}, "weights gives a nan"),
        ({"corpora": ["a"], "weights": [1.0]}, "no effect on a mixture of one"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Mixture(**settings)
    assert "\n" not in str(caught.value)


def test_all_unknown_names_are_reported() -> None:
    with pytest.raises(ValueError, match="unknown corpus") as caught:
        Mixture(corpora=["topic", "tools", "all"]).members(KNOWN)
    assert str(caught.value).splitlines() == [
        "unknown corpus 'topic'; known are topics, network, tools; did you mean 'topics'?",
        "corpus 'all' is a mixture itself; name the corpora that it mixes",
    ]


def test_a_recipe_of_mixtures_only_has_nothing_to_mix() -> None:
    with pytest.raises(ValueError, match="nothing to mix"):
        Mixture().members({"all": Mixture()})


def test_it_is_not_packed_itself() -> None:
    with pytest.raises(TypeError, match="has no text of its own"):
        Mixture().documents("train")
    with pytest.raises(TypeError, match="has no text of its own"):
        Mixture().fingerprint()
