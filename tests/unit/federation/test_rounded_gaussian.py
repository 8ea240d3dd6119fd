"""Gaussian noise on a grid: its table, its probabilities, and its tails."""

from __future__ import annotations

import hashlib
import math
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch

from worldlm.federation import rounded_gaussian as module
from worldlm.federation.noise_key import NoiseKey, RandomStream
from worldlm.federation.rounded_gaussian import FRACTION_BITS, rounded_gaussian

KEY = NoiseKey(bytes(32))


def normal(size: int, *purpose: str | int) -> np.ndarray:
    return (rounded_gaussian(KEY.stream(*purpose), size) + 0.5) / 2**FRACTION_BITS


def probability(low: float, high: float) -> float:
    """The probability that a standard normal number lies between two bounds."""
    return (math.erfc(low / math.sqrt(2)) - math.erfc(high / math.sqrt(2))) / 2


# ---------------------------------------------------------------------- the parts of the density are exact


def test_pi() -> None:
    """By Machin's formula, in integers."""

    def arctan_of_inverse(x: int, digits: int) -> int:
        total = term = 10**digits // x
        k = 1
        while term:
            term //= x * x
            k += 2
            total += term // k if k % 4 == 1 else -(term // k)
        return total

    pi = 4 * (4 * arctan_of_inverse(5, 120) - arctan_of_inverse(239, 120))
    assert str(module._PI).replace(".", "") == str(pi)[: len(str(module._PI)) - 1]


def test_every_box_fits_below_the_density_and_could_not_be_larger() -> None:
    with localcontext() as context:
        context.prec = 60
        scale = (2 / module._PI).sqrt() / 64 * 2**16
        for strip, count in enumerate(module._box_counts().tolist()):
            end = Decimal(strip + 1) / 64
            assert count == int(scale * (-end * end / 2).exp()), strip


def test_the_table_has_every_box_and_the_remainder() -> None:
    table, counts = module._table(), module._box_counts()
    assert np.array_equal(np.bincount(table[table >= 0], minlength=len(counts)), counts)
    assert (table < 0).sum() == 2**16 - counts.sum()
    assert 0.005 < (table < 0).mean() < 0.02


def test_boxes_and_remainder_add_up_to_the_normal_density() -> None:
    """The probability of the remainder, and its mass under the envelope, agree with the table."""
    boxes, envelope = module._exact_envelope()
    with localcontext() as context:
        context.prec = 60
        counts = module._box_counts().tolist()
        half_normal = (module._PI / 2).sqrt()  # the mass of exp(-x^2 / 2) above 0
        for strip in (0, 1, 63, 200):
            assert abs(boxes[strip] / 64 / half_normal - Decimal(counts[strip]) / 2**16) < Decimal("1e-50")
            start = Decimal(strip) / 64
            assert abs(envelope[strip] + boxes[strip] - (-start * start / 2).exp()) < Decimal("1e-50")
    fast_boxes, fast_envelope = module._envelope()
    assert np.allclose(fast_boxes, np.array(boxes, float), rtol=1e-14, atol=0)
    assert np.allclose(fast_envelope, np.array(envelope, float), rtol=1e-10, atol=0)


def test_the_decisions_in_float64_are_the_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """With margins above 1, each comparison is made in decimal numbers."""
    fast = module._propose(KEY.stream("remainder"), 1000)
    monkeypatch.setattr(module, "_STRIP_MARGIN", 2.0)
    monkeypatch.setattr(module, "_RATIO_MARGIN", 2.0)
    exact = module._propose(KEY.stream("remainder"), 1000)
    assert len(fast) > 300
    assert np.array_equal(fast, exact)


def test_unsure_decisions_use_more_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A height that equals the density ratio to 53 bits is decided by digits that float64 does not have."""
    calls = []
    exactly = module._propose_exactly
    monkeypatch.setattr(module, "_propose_exactly", lambda *args: calls.append(args) or exactly(*args))

    class Fixed(RandomStream):
        def branch(self, number: int):  # type: ignore[no-untyped-def]
            words = super().branch(number)
            if number != module._REMAINDER:
                return words
            strip, digits = 70, 2**63  # the middle of a strip
            level = (
                module._above()[module._NUM_STRIPS - 1 - strip] + module._above()[module._NUM_STRIPS - 2 - strip]
            ) / 2
            x = (strip + 0.5) / 64
            boxes, envelope = module._envelope()
            ratio = (math.exp(-x * x / 2) - boxes[strip]) / envelope[strip]
            sure = [int(level * 2**64), digits, int(ratio * 0.9 * 2**64)]
            unsure = [int(level * 2**64), digits, int(ratio * 2**64)]
            words.take = lambda size: np.array([sure, unsure], np.uint64).T.flatten()  # type: ignore[method-assign]
            return words

    numbers = module._propose(Fixed(bytes(32)), 2)
    assert len(calls) == 1
    assert numbers[0] == (70 << 34) + 2**33


# ---------------------------------------------------------------------- moments, quantiles, tails


@pytest.fixture(scope="module")
def million() -> np.ndarray:
    return normal(4_000_000, "moments")


def test_moments(million: np.ndarray) -> None:
    n = len(million)
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10_170)):
        assert (million**power).mean() == pytest.approx(expected, abs=5 * math.sqrt(variance / n)), power


def test_every_quarter_of_a_strip_has_its_probability(million: np.ndarray) -> None:
    """Chi-squared over 1,792 cells, all between -3.5 and 3.5 sigma; 5 standard deviations."""
    edges = np.arange(-896, 897) / 256
    counts, _ = np.histogram(million, bins=edges)
    expected = len(million) * np.array([probability(a, b) for a, b in pairwise(edges)])
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert abs(statistic - len(counts)) < 5 * math.sqrt(2 * len(counts))


def test_the_last_digits_are_uniform(million: np.ndarray) -> None:
    counts = np.bincount(rounded_gaussian(KEY.stream("digits"), 400_000) & 255, minlength=256)
    assert abs(((counts - 400_000 / 256) ** 2 / (400_000 / 256)).sum() - 255) < 5 * math.sqrt(2 * 255)


def test_numbers_far_out_have_their_probability() -> None:
    """All numbers beyond 4 sigma come from the remainder, so they are counted there, 120 times as fast."""
    draws = module._draw_remainder(KEY.stream("tails"), 1_000_000) / 2**FRACTION_BITS
    share = 1 - module._box_counts().sum() / 2**16  # probability that a number comes from the remainder
    assert module._box_counts()[4 * 64 :].sum() == 0  # so that beyond 4 sigma, all do
    for bound in (4.0, 4.5, 5.0, 5.5):
        expected = len(draws) * 2 * probability(bound, math.inf) / share
        assert (draws > bound).sum() == pytest.approx(expected, abs=5 * math.sqrt(expected)), bound


def test_the_share_of_the_remainder_is_its_mass() -> None:
    """So the whole density is the normal one also where there are no boxes, at 6 sigma and beyond.

    A number comes from the remainder with probability `share`, and then has the density `(h - box) / mass`. Beyond the
    last box its density is therefore `share * h / mass`, which is that of a normal number if `share = mass`.
    """
    boxes, _ = module._envelope()
    starts = np.arange(module._NUM_STRIPS) / 64
    above = np.array([math.erfc(start / math.sqrt(2)) for start in [*starts, 32.0]])
    masses = (above[:-1] - above[1:]) - boxes / 64 / math.sqrt(math.pi / 2)  # of |X|, whose total is 1
    assert (masses >= 0).all()
    assert masses.sum() == pytest.approx((module._table() < 0).mean(), rel=1e-11)
    assert boxes[4 * 64 :].sum() == 0
    assert masses[6 * 64 :].sum() == pytest.approx(2 * probability(6, 32), rel=1e-9)


def test_more_than_six_sigma_occurs() -> None:
    """At 6 to 7 sigma: proposals that start from a level that leads there."""
    position = module._NUM_STRIPS - 1 - 6 * 64
    level = (
        Fraction(module._above()[position - 1])
        + Fraction(module._above()[position] - module._above()[position - 1]) / 2
    )
    number, accepted = module._propose_exactly([int(level * 2**64), 0, 0], KEY.stream("six").branch(0))
    assert accepted
    assert 6 <= number / 2**FRACTION_BITS < 6 + 2 / 64


# ---------------------------------------------------------------------- order


def test_the_numbers_do_not_depend_on_how_they_are_grouped() -> None:
    size = 3 * module._CHUNK + 17
    whole = rounded_gaussian(KEY.stream("a"), size)
    stream = KEY.stream("a")
    assert np.array_equal(np.concatenate([rounded_gaussian(stream, module._CHUNK) for _ in range(3)]), whole[:-17])
    assert len(np.unique(whole)) == size


def test_numbers_that_must_not_change_between_versions() -> None:
    """Otherwise a run that resumes with another version would repeat no release."""
    numbers = rounded_gaussian(KEY.stream("golden"), 100_000)
    assert numbers[:4].tolist() == [1081700766842, 447366082329, 638486260668, 346969025339]
    assert hashlib.sha256(numbers.astype("<i8").tobytes()).hexdigest()[:16] == "71e98711961c313f"


def test_noise_goes_to_tensors_of_any_layout() -> None:
    kwargs = {"scale": 1.0, "clip_norm": 1.0, "noise_multiplier": 1.0}
    flat = torch.zeros(6)
    module.add_noise_([flat], KEY.stream_for("a"), **kwargs)
    turned = torch.zeros(3, 2).T  # not contiguous
    module.add_noise_([turned], KEY.stream_for("a"), **kwargs)
    assert torch.equal(turned, flat.view(2, 3))
    assert flat.std() > 0.1
