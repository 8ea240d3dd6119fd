"""Dividing records over shards: pure functions of a record's number or of the value of one of its fields.

None of them depends on other records, so a stream can be divided while it is read once, and a reading that was
interrupted continues the same way. Random numbers come from `numpy.random.RandomState`, whose streams never change
(NEP 19), so that every machine makes the same shards.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BITS = 32
_GOLDEN = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio: its multiples modulo 2^64 are spread evenly, in any stretch of numbers."""


def thresholds(shares: Sequence[float] | NDArray[np.float64]) -> list[int]:
    """Return the upper ends of the intervals of [0, 2^32) that have given shares of it.

    Args:
        shares: Shares of the shards, at least 0 and of sum 1, shape [num_shards].
    """
    ends = [int(end) for end in np.floor(np.cumsum(np.asarray(shares, np.float64)) * 2.0**_BITS)]
    last = max(index for index, share in enumerate(shares) if share > 0)
    return [*ends[:last], *[2**_BITS] * (len(ends) - last)]


def shard_of_number(number: int, ends: Sequence[int]) -> int:
    """Return the shard of the record with a number, such that every shard gets its share of any stretch of records.

    The records of a shard are spread evenly over the source (multiples of the golden ratio modulo 1), so a shard of
    share s has s * n of the first n records, up to a few.

    Args:
        number: The number of the record in its source, from 0.
        ends: The `thresholds` of the shares.
    """
    return bisect_right(ends, (number * _GOLDEN & (2**64 - 1)) >> (64 - _BITS))


def shard_of_value(value: str, seed: int, ends: Sequence[int]) -> int:
    """Return the shard that a value is assigned to, by a hash: each shard with the probability of its share.

    Args:
        value: The value.
        seed: The seed.
        ends: The `thresholds` of the shares.
    """
    return bisect_right(ends, _hash(seed, value))


def dirichlet(alpha: NDArray[np.float64], seed: int, value: str) -> NDArray[np.float64]:
    """Draw the shares of a value that the shards get.

    A Dirichlet distribution is gamma variables over their sum. Each is drawn as Gamma(a + 1) * U^(1 / a) (Marsaglia and
    Tsang 2000, section 6) and kept as a logarithm, so that a small concentration does not round all of them to 0.

    Args:
        alpha: Concentrations, above 0, shape [num_shards].
        seed: The seed.
        value: The value; every value has a draw of its own.

    Returns:
        The shares, of sum 1, shape [num_shards].
    """
    generator = np.random.RandomState(_hash(seed, value))
    gammas = np.log(generator.standard_gamma(alpha + 1)) + np.log1p(-generator.random_sample(len(alpha))) / alpha
    weights = np.exp(gammas - gammas.max())
    return np.asarray(weights / weights.sum(), np.float64)


def log_normal(num_shards: int, sigma: float, seed: int) -> NDArray[np.float64]:
    """Draw the sizes of shards: exp(sigma * N(0, 1)) over their sum, shape [num_shards].

    Args:
        num_shards: Number of shards.
        sigma: Standard deviation of the logarithm of a size; 0 makes all equal.
        seed: The seed.
    """
    sizes = np.exp(sigma * np.random.RandomState(_hash(seed, "sizes")).standard_normal(num_shards))
    return np.asarray(sizes / sizes.sum(), np.float64)


def divide(whole: int, shares: Sequence[float] | NDArray[np.float64]) -> list[int]:
    """Divide a whole number in proportion to shares of sum 1: rounded down, and what is left one each to the first.

    Args:
        whole: The number to divide.
        shares: The shares, shape [num_parts].
    """
    parts = [int(part) for part in np.floor(whole * np.asarray(shares, np.float64) + 1e-9)]
    left = whole - sum(parts)
    return [part + (index < left) for index, part in enumerate(parts)]


def _hash(seed: int, value: str) -> int:
    """Hash a seed and a text to 32 bits, the same on every machine."""
    data = f"{seed}:{value}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=_BITS // 8).digest(), "big")
