"""Robust means: compared with numbers computed by hand, and with poisoned models."""

import math

import pytest
import torch
from torch import Tensor

from worldlm.federation.averaging import weighted_mean
from worldlm.federation.robust import median, norm_bounded_mean, trimmed_mean


def models(*values: float) -> list[dict[str, Tensor]]:
    return [{"w": torch.tensor([float(value), float(-value)])} for value in values]


def test_by_hand() -> None:
    assert median(models(5, 1, 3))["w"].tolist() == [3.0, -3.0]
    assert median(models(5, 1, 3, 100))["w"].tolist() == [4.0, -4.0]
    assert median(models(7))["w"].tolist() == [7.0, -7.0]
    assert trimmed_mean(models(1, 2, 3, 4, 1000), 1)["w"].tolist() == [3.0, -3.0]
    assert trimmed_mean(models(1, 2, 6), 0)["w"].tolist() == [3.0, -3.0]


def test_coordinates_are_independent() -> None:
    given = [
        {"w": torch.tensor(row)} for row in ([[1.0, 9.0], [0.0, 0.0]], [[2.0, 8.0], [5.0, 1.0]], [[3.0, 0], [1, 2]])
    ]
    assert median(given)["w"].tolist() == [[2.0, 8.0], [1.0, 1.0]]


def test_more_coordinates_than_a_chunk() -> None:
    given = [{"w": torch.randn(70_001, generator=torch.Generator().manual_seed(i))} for i in range(5)]
    stacked = torch.stack([model["w"] for model in given])
    assert torch.equal(median(given)["w"], stacked.median(dim=0).values)


@pytest.mark.parametrize("poison", [[1e5], [1e5, -1e5], [1e5, 1e5], [-1e5, -1e5]])
def test_one_and_two_poisoned_of_five(poison: list[float]) -> None:
    honest = [1.0, 2.0, 3.0, 4.0][: 5 - len(poison)]
    given = models(*poison, *honest)
    for mean in (median(given), trimmed_mean(given, 2), trimmed_mean(given, len(poison))):
        assert min(honest) <= float(mean["w"][0]) <= max(honest)
    plain = float(weighted_mean(given, [1.0] * 5)["w"][0])
    assert abs(plain) > 1e4 or sum(poison) == 0
    start = {"w": torch.zeros(2)}
    bounded = float(norm_bounded_mean(given, [1.0] * 5, start)["w"][0])
    assert abs(bounded) <= max(honest)


def test_a_large_update_is_clipped() -> None:
    start = {"w": torch.tensor([1.0, 1.0]), "other": torch.zeros(1)}
    near, far = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([11.0, 1.0])}  # norms 1 and 10
    result = norm_bounded_mean([near, far], [3.0, 1.0], start, max_norm=2.0)
    assert result["w"].tolist() == pytest.approx([1.5, 1.75])  # far counts as [3, 1]
    assert list(result) == ["w"]
    unmoved = norm_bounded_mean([start, start], [1.0, 1.0], start)
    assert torch.equal(unmoved["w"], start["w"])


def test_updates_within_the_norm_are_not_clipped() -> None:
    given, start = models(1, 2, 6), {"w": torch.zeros(2)}
    plain = weighted_mean(given, [1.0, 2.0, 1.0])
    assert torch.allclose(norm_bounded_mean(given, [1.0, 2.0, 1.0], start, math.inf)["w"], plain["w"], rtol=1e-6)


@pytest.mark.parametrize(("number", "trim"), [(2, 1), (5, 3), (3, -1)])
def test_at_least_one_value_must_remain(number: int, trim: int) -> None:
    with pytest.raises(ValueError, match="cannot be dropped"):
        trimmed_mean(models(*range(number)), trim)
