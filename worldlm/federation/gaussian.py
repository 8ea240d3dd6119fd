"""Exact composition of releases of the Gaussian mechanism without subsampling."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

_STEPS = 200
"""Largest number of bisections, more than a float64 has bits."""


def composed_mu(releases: Iterable[tuple[float, int]]) -> float:
    """Return the mu of all releases together; the variances of the privacy loss add up.

    Args:
        releases: Pairs of a noise multiplier, above 0, and the number of releases with it.
    """
    return math.sqrt(sum(steps / noise_multiplier**2 for noise_multiplier, steps in releases))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the epsilon at `delta` of a Gaussian mechanism (Balle and Wang, arXiv 1805.06530, theorem 8).

    ``delta = Phi(mu / 2 - epsilon / mu) - exp(epsilon) Phi(-mu / 2 - epsilon / mu)``, solved from above.

    Args:
        mu: Sensitivity over standard deviation of the noise, at least 0; see `composed_mu`.
        delta: Between 0 and 1.
    """
    if mu == 0.0 or _delta(0.0, mu) <= delta:
        return 0.0
    low, high = 0.0, mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta))  # the bound of zCDP
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _delta(middle, mu) > delta else (low, middle)
    return high


def _delta(epsilon: float, mu: float) -> float:
    # exp(epsilon) Phi(b) = exp(-a^2 / 2) erfcx(-b / sqrt 2) / 2 where b = a - mu; it avoids overflow and cancellation
    a = mu / 2 - epsilon / mu
    scaled = math.exp(-a * a / 2) / 2
    return math.erfc(-a / math.sqrt(2)) / 2 - scaled * _erfcx((mu - a) / math.sqrt(2))


def _erfcx(x: float) -> float:
    return float(torch.special.erfcx(torch.tensor(x, dtype=torch.float64)))
