"""Attacks on noise by search: guess the secret that it was drawn from, draw it again, and compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor

from worldlm.federation.noise_key import NoiseKey
from worldlm.federation.privacy import sanitise
from worldlm.federation.seeds import derive_seed

PURPOSES = ("upload noise", "gradient noise", "participation", "examples", "blocks", "dropout", "compression")
COORDINATES = 64
"""Coordinates that are enough to recognise noise: by chance all are small with a probability below 10^-30."""


@dataclass(frozen=True)
class Release:
    """What a parent has of a node's upload: all but the noise key, and which of the candidates was uploaded."""

    sent: Tensor
    candidates: tuple[Tensor, ...]
    purpose: tuple[str | int, ...] = ("node", 0, 0, "upload noise")
    clip_norm: float = 1.0
    noise_multiplier: float = 1.0


def upload(key: NoiseKey, which: int, size: int = 128) -> Release:
    """Release one of two random updates of norm 1 with the noise of a key."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, size, generator=generator)
    candidates = tuple(drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True))
    return Release(noised(Release(drawn, candidates), key, which), candidates)


def noised(release: Release, key: NoiseKey, which: int) -> Tensor:
    """Return what would have been sent with this key and this candidate, from a start of zeros."""
    model, start = {"w": release.candidates[which]}, {"w": torch.zeros_like(release.candidates[which])}
    bounds = {"clip_norm": release.clip_norm, "noise_multiplier": release.noise_multiplier}
    return sanitise(model, start, **bounds, stream=key.stream_for(*release.purpose)).tensors["w"]


def search_key(release: Release, known: bytes, num_bits: int) -> tuple[int, int, int] | None:
    """Try all values of the last bits of a key.

    Args:
        release: What the attacker has.
        known: The key, whose last `num_bits` bits are ignored.
        num_bits: Bits to search, at most 64.

    Returns:
        The bits, the candidate that was uploaded, and the number of guesses; None if no key fits.
    """
    rest = int.from_bytes(known, "big") >> num_bits << num_bits
    for guess in range(2**num_bits):
        key = NoiseKey((rest | guess).to_bytes(32, "big"))
        for which in range(len(release.candidates)):
            if torch.equal(noised(release, key, which), release.sent):
                return guess, which, guess + 1
    return None


def search_seed(sent: Tensor, known: int, num_bits: int) -> tuple[int, int] | None:
    """Try all values of the last bits of a torch seed. The update need not be known: it is short without its noise.

    Args:
        sent: An update of norm 1 with noise of standard deviation 1 from `torch.randn`.
        known: The seed, whose last `num_bits` bits are ignored.
        num_bits: Bits to search.

    Returns:
        The bits and the number of guesses; None if no seed fits.
    """
    rest, generator = known >> num_bits << num_bits, torch.Generator()
    first = sent[:COORDINATES]
    for guess in range(2**num_bits):
        generator.manual_seed(rest | guess)
        if is_short(first - torch.randn(COORDINATES, generator=generator)):
            return guess, guess + 1
    return None


def is_short(rest: Tensor) -> bool:
    """Return whether what is left of the first coordinates can be a part of an update of norm 1."""
    return float(rest.square().sum()) <= 1.0


def noises_of_a_seed(seed: int, names: Sequence[str], rounds: int) -> Iterator[Tensor]:
    """Yield all noise that follows from a run's seed in an obvious way: by torch, NumPy and Python, from every seed
    that is derived from it for a node, a round and a purpose, and from its lower 32 bits."""
    derived = [
        derive_seed(seed, name, round, *subround, purpose)
        for name in names
        for round in range(rounds)
        for subround in ((), (0,), (1,))
        for purpose in PURPOSES
    ]
    for number in (seed, *derived, *(one & 0xFFFFFFFF for one in derived)):
        yield torch.randn(COORDINATES, generator=torch.Generator().manual_seed(number))
        yield torch.from_numpy(np.random.default_rng(number).standard_normal(COORDINATES)).float()
        random = Random(number)
        yield torch.tensor([random.gauss(0.0, 1.0) for _ in range(COORDINATES)])


def keys_of_a_seed(seed: int) -> Iterator[NoiseKey]:
    """Yield the keys that a program might carelessly have made from a run's seed."""
    numbers = [seed, derive_seed(seed), *(derive_seed(seed, word) for word in ("noise key", "noise_key", "key"))]
    for number in numbers:
        for order in ("big", "little"):
            yield NoiseKey(number.to_bytes(32, order))  # type: ignore[arg-type]
        yield NoiseKey(Random(number).randbytes(32))
        yield NoiseKey(np.random.default_rng(number).bytes(32))
