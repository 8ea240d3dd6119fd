"""Records are divided by their number or by a value, in given shares."""

from __future__ import annotations

import numpy as np
import pytest

from worldlm.data.sharding import dirichlet, divide, log_normal, shard_of_number, shard_of_value, thresholds

DIRICHLET = [0.9225665636052531, 0.07743343639474687]
LOG_NORMAL = [0.21183780906043986, 0.4651048096519438, 0.32305738128761646]


def test_thresholds_end_the_intervals_and_cover_everything() -> None:
    assert thresholds([0.25, 0.25, 0.5]) == [2**30, 2**31, 2**32]
    assert thresholds([0.5, 0.5, 0.0]) == [2**31, 2**32, 2**32]
    assert thresholds([0.1] * 10)[-1] == 2**32  # although the floats add up to less


def test_every_shard_gets_its_share_of_any_stretch() -> None:
    shares, ends = [0.6, 0.3, 0.1], thresholds([0.6, 0.3, 0.1])
    shards = np.array([shard_of_number(number, ends) for number in range(6000)])
    for start, stop, step in ((0, 10, 1), (0, 1000, 1), (777, 1777, 1), (5000, 5100, 1), (0, 6000, 2), (1, 6000, 3)):
        part = shards[start:stop:step]
        counts = np.bincount(part, minlength=3)
        assert (abs(counts - np.array(shares) * len(part)) <= 3).all()


def test_the_shard_of_a_number_is_written_down() -> None:
    # multiples of 0.618034 modulo 1: 0, 0.618, 0.236, 0.854, 0.472, 0.090
    assert [shard_of_number(number, thresholds([0.25, 0.25, 0.5])) for number in range(6)] == [0, 2, 0, 2, 1, 0]


def test_values_are_assigned_by_a_hash() -> None:
    ends = thresholds([0.75, 0.25])
    shards = [shard_of_value(f"author {number}", 0, ends) for number in range(2000)]
    assert 400 < sum(shards) < 600
    assert shards != [shard_of_value(f"author {number}", 1, ends) for number in range(2000)]


def test_draws_are_the_same_on_every_machine() -> None:
    assert dirichlet(np.array([1.0, 1.0]), 0, "it").tolist() == pytest.approx(DIRICHLET, rel=1e-9)
    assert log_normal(3, 1.0, 0).tolist() == pytest.approx(LOG_NORMAL, rel=1e-9)


@pytest.mark.parametrize("alpha", [1e-4, 0.1, 1.0, 100.0])
def test_dirichlet_has_the_moments_of_its_formula(alpha: float) -> None:
    concentration = alpha * np.array([1.0, 2.0, 1.0])
    draws = np.array([dirichlet(concentration, 0, str(number)) for number in range(1000)])
    assert draws.sum(1) == pytest.approx(1)
    mean = concentration / concentration.sum()
    variance = mean * (1 - mean) / (concentration.sum() + 1)
    assert draws.mean(0) == pytest.approx(mean, abs=4 * float(np.sqrt(variance.max() / 1000)))
    assert draws.var(0) == pytest.approx(variance, rel=0.25)


def test_sizes_are_log_normal() -> None:
    sizes = log_normal(4000, 0.5, 3)
    assert sizes.sum() == pytest.approx(1)
    assert np.log(sizes).std() == pytest.approx(0.5, rel=0.05)
    assert log_normal(4, 0.0, 3).tolist() == [0.25] * 4


def test_a_number_is_divided_without_rest() -> None:
    assert divide(100, [1 / 3] * 3) == [34, 33, 33]
    assert divide(10, [0.5, 0.3, 0.2]) == [5, 3, 2]
    assert divide(11, [0.5, 0.3, 0.2]) == [6, 3, 2]
