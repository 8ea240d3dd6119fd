"""Epsilon: pinned figures, the closed form of the Gaussian mechanism, and the edges of Opacus' accountants.

Whoever takes part in all has the closed form; `NEARLY` all is what accountants are asked for, and costs no more.
"""

import math
from itertools import pairwise

import pytest
from opacus.accountants import PRVAccountant
from scipy.special import log_ndtr

from worldlm.federation.privacy import PrivacyLedger

DELTA = 1e-5
NEARLY = 0.9999


def spent(*runs: tuple[float, float, int]) -> PrivacyLedger:
    return PrivacyLedger(list(runs))


def exact_epsilon(noise_multiplier: float, num_steps: int, delta: float = DELTA) -> float:
    """Epsilon of composed Gaussian mechanisms, sample rate 1 (Balle and Wang, arXiv 1805.06530, theorem 8)."""
    mu = math.sqrt(num_steps) / noise_multiplier

    def log_delta(epsilon: float) -> float:
        left, right = log_ndtr(mu / 2 - epsilon / mu), epsilon + log_ndtr(-mu / 2 - epsilon / mu)
        return float(left + math.log(max(-math.expm1(right - left), 1e-300)))

    low, high = 0.0, 10 * mu * mu + 100 * mu
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if log_delta(middle) > math.log(delta) else (low, middle)
    return high


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize(
    ("noise_multiplier", "sample_rate", "num_steps", "prv", "rdp"),
    [(1.0, 1.0, 20, 28.38, 30.13), (2.0, 1.0, 20, 11.49, 12.30), (1.0, 0.01, 1000, 1.84, 2.10)],
)
def test_pinned(noise_multiplier, sample_rate, num_steps, prv, rdp) -> None:
    ledger = spent((noise_multiplier, sample_rate, num_steps))
    assert ledger.epsilon(DELTA) == pytest.approx(prv, abs=0.02)
    assert ledger.epsilon_rdp(DELTA) == pytest.approx(rdp, abs=0.01)


def test_the_closed_form_equals_the_published_value() -> None:
    assert exact_epsilon(1.0, 20) == pytest.approx(28.374, abs=0.001)


@pytest.mark.parametrize("noise_multiplier", [1000.0, 20.0, 2.69, 1.0, 0.05, 1e-3, 1e-6])
@pytest.mark.parametrize("num_steps", [1, 20, 20_000])
@pytest.mark.parametrize("delta", [1e-14, 1e-5, 1e-2])
def test_full_participation_uses_the_closed_form(monkeypatch, noise_multiplier, num_steps, delta) -> None:
    def must_not(*args, **kwargs):
        raise AssertionError("gigabytes and seconds, more with every round")

    monkeypatch.setattr(PRVAccountant, "get_epsilon", must_not)
    epsilon = spent((noise_multiplier, 1.0, num_steps)).epsilon(delta)
    assert epsilon == pytest.approx(exact_epsilon(noise_multiplier, num_steps, delta), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("noise_multiplier", "num_steps"), [(20.0, 1), (2.69, 20), (1.0, 1), (0.5, 20), (0.05, 1), (0.035, 1)]
)
def test_accounting_is_the_closed_form_or_a_hundredth_above(noise_multiplier, num_steps) -> None:
    exact = exact_epsilon(noise_multiplier, num_steps)
    assert exact - 0.01 <= spent((noise_multiplier, NEARLY, num_steps)).epsilon(DELTA) <= exact + 0.02


@pytest.mark.parametrize("delta", [1e-10, 1e-6, 1e-2])
def test_other_deltas(delta) -> None:
    exact = exact_epsilon(1.0, 20, delta)
    assert exact - 0.01 <= spent((1.0, NEARLY, 20)).epsilon(delta) <= exact + 0.02


def test_changed_noise_composes() -> None:
    # variances of the privacy loss add up: 20 / 1^2 + 20 / 2^2 = 25 / 1^2
    mixed = spent((1.0, 1.0, 20), (2.0, 1.0, 20))
    assert mixed.epsilon(DELTA) == pytest.approx(exact_epsilon(1.0, 25), abs=0.02)


def test_sampling_fewer_costs_less() -> None:
    assert spent((2.0, 0.1, 20)).epsilon(DELTA) < spent((2.0, 1.0, 20)).epsilon(DELTA)


# ---------------------------------------------------------------- edges


@pytest.mark.parametrize(
    ("noise_multiplier", "num_steps"), [(0.1, 20), (0.05, 20), (0.028, 1), (0.01, 1), (1e-3, 20), (1e-6, 1)]
)
def test_little_noise_uses_rdp_without_calling_prv(monkeypatch, noise_multiplier, num_steps) -> None:
    def must_not(*args, **kwargs):
        raise AssertionError("a mesh of gigabytes, and an epsilon that may be too small")

    monkeypatch.setattr(PRVAccountant, "get_epsilon", must_not)
    delta = 1.5e-5  # not in the cache
    ledger, exact = spent((noise_multiplier, NEARLY, num_steps)), exact_epsilon(noise_multiplier, num_steps, delta)
    assert ledger.epsilon(delta) == ledger.epsilon_rdp(delta)
    assert 0.99 * exact <= ledger.epsilon(delta) <= 1.1 * exact + 0.01


def test_very_many_steps_use_rdp() -> None:
    ledger = spent((8.0, NEARLY, 20_000))
    assert exact_epsilon(8.0, 20_000) <= ledger.epsilon(DELTA) == ledger.epsilon_rdp(DELTA)


def test_rdp_is_used_if_prv_fails() -> None:
    ledger = spent((1.0, NEARLY, 20))  # PRV: "floating point errors will dominate"
    assert exact_epsilon(1.0, 20, 1e-14) <= ledger.epsilon(1e-14) == ledger.epsilon_rdp(1e-14)


@pytest.mark.parametrize("failing", [float("nan"), float("inf"), RuntimeError("no"), MemoryError()])
def test_an_invalid_result_of_prv_is_never_used(monkeypatch, failing) -> None:
    def fail(*args, **kwargs):
        if isinstance(failing, Exception):
            raise failing
        return failing

    monkeypatch.setattr(PRVAccountant, "get_epsilon", fail)
    delta = 2e-5 + 1e-9 * len(repr(failing))  # not in the cache
    ledger = spent((1.0, NEARLY, 20))
    assert ledger.epsilon(delta) == ledger.epsilon_rdp(delta) > 25


def test_epsilon_is_never_negative() -> None:
    for rate in (1.0, NEARLY):
        ledger = spent((5.0, rate, 1))  # Opacus: -0.68, -0.65
        assert (ledger.epsilon(0.5), ledger.epsilon_rdp(0.5)) == (0.0, 0.0)


def test_an_empty_ledger_has_spent_nothing() -> None:
    assert (PrivacyLedger().epsilon(DELTA), PrivacyLedger().epsilon_rdp(DELTA)) == (0.0, 0.0)


def test_one_release_without_noise_spends_everything() -> None:
    ledger = spent((1.0, 1.0, 5), (0.0, 1.0, 1))
    assert (ledger.epsilon(DELTA), ledger.epsilon_rdp(DELTA)) == (math.inf, math.inf)
    assert spent((1.0, 1.0, 5)).epsilon_after(0.0, DELTA) == math.inf


# ---------------------------------------------------------------- keeping the ledger


def test_equal_steps_are_merged() -> None:
    ledger = PrivacyLedger()
    for noise_multiplier, sample_rate in [(1.0, 1.0), (1.0, 1.0), (2.0, 1.0), (2.0, 0.5), (1.0, 1.0)]:
        ledger.step(noise_multiplier, sample_rate)
    assert ledger.history == [(1.0, 1.0, 2), (2.0, 1.0, 1), (2.0, 0.5, 1), (1.0, 1.0, 1)]


def test_ledgers_are_independent() -> None:
    PrivacyLedger().step(1.0)
    assert PrivacyLedger().history == []


def test_epsilon_rises_with_every_step() -> None:
    ledger, epsilons = PrivacyLedger(), [0.0]
    for noise_multiplier in (2.0, 2.0, 4.0, 2.0):
        ledger.step(noise_multiplier)
        epsilons.append(ledger.epsilon(DELTA))
    assert all(before < after for before, after in pairwise(epsilons))


def test_epsilon_keeps_rising_at_the_switch_to_rdp() -> None:
    ledgers = [spent((0.05, NEARLY, num_steps)) for num_steps in (1, 2, 3, 4)]
    epsilons = [ledger.epsilon(DELTA) for ledger in ledgers]
    assert epsilons == sorted(epsilons)
    by_rdp = [ledger.epsilon(DELTA) == ledger.epsilon_rdp(DELTA) for ledger in ledgers]
    assert by_rdp == [False, False, True, True]


@pytest.mark.parametrize(
    ("noise_multiplier", "sample_rate", "num_steps"), [(4.0, 1.0, 3), (6.0, 1.0, 2), (40.0, 0.5, 1)]
)
def test_epsilon_after_equals_epsilon_after_the_steps(noise_multiplier, sample_rate, num_steps) -> None:
    ledger = spent((4.0, 1.0, 4))
    expected = ledger.epsilon_after(noise_multiplier, DELTA, sample_rate, num_steps)
    assert ledger.history == [(4.0, 1.0, 4)]  # asking costs nothing
    for _ in range(num_steps):
        ledger.step(noise_multiplier, sample_rate)
    assert ledger.epsilon(DELTA) == expected
