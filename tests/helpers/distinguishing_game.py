"""The game that differential privacy limits: tell from releases whether a unit was there.

The privacy loss of a release of the Gaussian mechanism is N(mu^2 / 2, mu^2) if the unit was there, and N(-mu^2 / 2,
mu^2) if not (Dong et al., arXiv 1905.02383). No test is better than to compare it with a threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from worldlm.data.poisson_samplers import PoissonBatchSampler
from worldlm.federation.gaussian import gaussian_epsilon
from worldlm.federation.noise_key import NoiseKey
from worldlm.federation.privacy import sanitise
from worldlm.federation.private_gradient import private_gradient

Losses = NDArray[np.float64]
CLIP_NORM = 0.7
SIZE = 12


@dataclass(frozen=True)
class Measured:
    """A measured figure beside the exact one."""

    value: float
    error: float
    """Standard error of `value`."""
    exact: float

    @property
    def deviation(self) -> float:
        """How many standard errors lie between the two."""
        return (self.value - self.exact) / self.error


def direction() -> torch.Tensor:
    """A fixed vector of norm 1 with coordinates of different size and sign."""
    vector = torch.arange(1.0, SIZE + 1) * torch.tensor([1.0, -1.0]).repeat(SIZE // 2)
    return vector / torch.linalg.vector_norm(vector)


def releases_of_updates(key: NoiseKey, noise_multiplier: float, is_there: bool, number: int) -> Losses:
    """Release an update, longer than the bound or zero, and return its component along it in units of the bound."""
    start = {"w": torch.zeros(SIZE)}
    model = {"w": 3.0 * CLIP_NORM * direction()} if is_there else start
    bounds = {"clip_norm": CLIP_NORM, "noise_multiplier": noise_multiplier}
    sent = [
        sanitise(model, start, **bounds, stream=key.stream_for("node", release, 0, "upload noise")).tensors["w"]
        for release in range(number)
    ]
    return _along(torch.stack(sent))


def releases_of_gradients(
    key: NoiseKey, noise_multiplier: float, is_there: bool, number: int, sampler: PoissonBatchSampler | None = None
) -> Losses:
    """Release gradients of DP-SGD with or without one example, and return their components along its gradient.

    Args:
        key: Of the noise.
        noise_multiplier: sigma.
        is_there: Whether the example is in the data.
        number: How many steps.
        sampler: Draws the batches from examples of which the last is the one to be found. By default it is in each.
    """
    others = torch.randn(8, SIZE, generator=torch.Generator().manual_seed(0))
    examples = torch.cat([others, 5.0 * direction()[None]])
    everything = list(range(len(examples)))
    # what the attacker subtracts: all other examples, clipped. It knows them, and when they were drawn
    known = others * (CLIP_NORM / torch.linalg.vector_norm(others, dim=1, keepdim=True)).clamp(max=1.0)
    sent = []
    for step in range(number):
        batch = everything if sampler is None else sampler.batch(step)
        batch = [i for i in batch if is_there or i < len(others)]
        noised = private_gradient(
            {"w": examples[batch]},
            clip_norm=CLIP_NORM,
            noise_multiplier=noise_multiplier,
            expected_batch_size=1.0,
            stream=key.stream_for("node", step, "gradient noise"),
        )
        sent.append(noised["w"] - known[[i for i in batch if i < len(others)]].sum(0))
    return _along(torch.stack(sent))


def _along(sent: torch.Tensor) -> Losses:
    along: Losses = (sent.double() @ direction().double() / CLIP_NORM).numpy()
    return along


def advantage(there: Losses, away: Losses, noise_multiplier: float, rate: float = 1.0) -> Measured:
    """Return the advantage of the best test, TPR - FPR: that of components above 1/2."""
    hits, alarms = (there > 0.5).mean(), (away > 0.5).mean()
    error = math.sqrt(hits * (1 - hits) / len(there) + alarms * (1 - alarms) / len(away))
    return Measured(float(hits - alarms), error, rate * math.erf(0.5 / noise_multiplier / math.sqrt(2)))


def delta_at(there: Losses, away: Losses, noise_multiplier: float, delta: float) -> Measured:
    """Return the delta that was measured at the epsilon of `gaussian_epsilon`, on the worst set of releases."""
    mu = 1 / noise_multiplier
    epsilon = gaussian_epsilon(mu, delta)
    threshold = epsilon / mu**2 + 0.5  # where the privacy loss is epsilon
    hits, alarms = (there > threshold).mean(), (away > threshold).mean()
    factor = math.exp(epsilon)
    expected = 0.5 * math.erfc((threshold * mu) / math.sqrt(2))  # of alarms, which may be too rare to be seen
    error = math.sqrt(hits * (1 - hits) / len(there) + factor**2 * expected * (1 - expected) / len(away))
    return Measured(float(hits - factor * alarms), error, delta)


Game = Callable[[NoiseKey, float, bool, int], Losses]
GAMES: dict[str, Game] = {"update": releases_of_updates, "gradient": releases_of_gradients}
