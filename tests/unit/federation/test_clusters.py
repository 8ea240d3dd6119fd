"""Clusters of updates, compared with numbers computed by hand."""

from __future__ import annotations

import pytest
import torch

from worldlm.federation.clusters import agglomerate, update_similarities
from worldlm.federation.parameters import CHUNK


def test_similarities_are_cosines_of_updates() -> None:
    start = {"p": torch.tensor([1.0, 1.0]), "q": torch.tensor([[2.0]]), "other": torch.tensor(5.0)}
    updates = {"a": (3, 0, 4), "b": (0, 0, 2), "c": (-3, 0, -4), "none": (0, 0, 0)}
    models = [{"p": torch.tensor([1.0 + x, 1.0 + y]), "q": torch.tensor([[2.0 + z]])} for x, y, z in updates.values()]
    expected = [[1, 0.8, -1, 0], [0.8, 1, -0.8, 0], [-1, -0.8, 1, 0], [0, 0, 0, 0]]
    for row, expected_row in zip(update_similarities(models, start), expected, strict=True):
        assert row == pytest.approx(expected_row)


def test_similarities_of_several_chunks() -> None:
    size = 2 * CHUNK + 5
    start = {"w": torch.zeros(size)}
    first, second = torch.zeros(2, size).unbind()
    first[[0, CHUNK, 2 * CHUNK]] = 1.0
    second[[0, CHUNK, 2 * CHUNK + 1]] = 1.0
    similarities = update_similarities([{"w": first}, {"w": second}], start)
    assert similarities[0] == pytest.approx([1.0, 2 / 3])


FOUR = [
    [1.0, 0.8, 0.1, 0.3],
    [0.8, 1.0, 0.2, 0.2],
    [0.1, 0.2, 1.0, 0.6],
    [0.3, 0.2, 0.6, 1.0],
]
"""Average linkage merges 0 and 1 at 0.8, 2 and 3 at 0.6, and both at (0.1 + 0.3 + 0.2 + 0.2) / 4 = 0.2."""


@pytest.mark.parametrize(
    ("min_similarity", "clusters"),
    [(0.81, [0, 1, 2, 3]), (0.8, [0, 0, 1, 2]), (0.6, [0, 0, 1, 1]), (0.21, [0, 0, 1, 1]), (0.19, [0, 0, 0, 0])],
)
def test_average_linkage_by_hand(min_similarity: float, clusters: list[int]) -> None:
    assert agglomerate(FOUR, min_similarity) == clusters


def test_the_mean_is_over_all_pairs_of_items() -> None:
    """0 and 1 merge at 0.9, and 2 joins them at 0.6. Between them and 3 the mean is (0.1 + 0.1 + 0.55) / 3 = 0.25.

    A mean of the means of {0, 1} and {2} would be (0.1 + 0.55) / 2 = 0.325.
    """
    similarities = [
        [1.0, 0.9, 0.7, 0.1],
        [0.9, 1.0, 0.5, 0.1],
        [0.7, 0.5, 1.0, 0.55],
        [0.1, 0.1, 0.55, 1.0],
    ]
    assert agglomerate(similarities, 0.3) == [0, 0, 0, 1]
    assert agglomerate(similarities, 0.24) == [0, 0, 0, 0]


def test_the_order_of_items_does_not_matter() -> None:
    order = [2, 0, 3, 1]
    shuffled = [[FOUR[a][b] for b in order] for a in order]
    assert agglomerate(shuffled, 0.5) == [0, 1, 0, 1]  # numbered by first items


def test_one_item_and_equal_items() -> None:
    assert agglomerate([[0.0]], -1.0) == [0]
    assert agglomerate([[1.0] * 3] * 3, 1.0) == [0, 0, 0]
