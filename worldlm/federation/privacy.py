"""Update-level differential privacy: clipping, noise, and accounting.

The unit of privacy is the node. Its whole upload is clipped and noise is added, so that the guarantee hides what the
node, with the whole federation below it, contributed (McMahan et al., arXiv 1710.06963). That it took part is visible.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from worldlm.federation.gaussian import composed_mu, gaussian_epsilon
from worldlm.federation.noise_key import StreamFor
from worldlm.federation.parameters import Tensors, norm, subtract
from worldlm.federation.rounded_gaussian import add_noise_

# Keeps the norm of a clipped update below the bound despite rounding.
_MARGIN = 1.0 - 2.0**-20


@dataclass(frozen=True, slots=True)
class Sanitised:
    """A sanitised model, which may be sent."""

    tensors: Tensors
    update_norm: float
    """L2 norm of the update before clipping; not finite if the update is not."""


@torch.no_grad()
def sanitise(
    model: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    *,
    clip_norm: float,
    noise_multiplier: float,
    stream: StreamFor,
) -> Sanitised:
    """Clip the update `model - start` to an L2 norm and add Gaussian noise.

    ``U <- U * min(1, C / |U|) + N(0, (sigma C)^2)`` per coordinate, all tensors taken as one vector. The noise and the
    clipped update are on a grid of step ``sigma C / 2^40``; see `worldlm.federation.rounded_gaussian`. An update that
    is not finite is clipped to 0, so that only noise is sent. Sending nothing would reveal that the node diverged.

    Args:
        model: The trained tensors of the node, by name.
        start: The tensors that its parent already has, by name.
        clip_norm: C, above 0; with infinity nothing is clipped, and noise is not allowed.
        noise_multiplier: sigma; 0 for none, else at least `MIN_NOISE_MULTIPLIER`.
        stream: Makes the random stream of the noise, given the values that determine the clipped update.

    Returns:
        New tensors `start + U`; the model's own tensors if nothing was clipped or added.

    Raises:
        ValueError: If `noise_multiplier` is above 0 without a finite `clip_norm`, or too small.
    """
    if noise_multiplier > 0 and math.isinf(clip_norm):
        raise ValueError("noise_multiplier needs a finite clip_norm: unclipped updates have no sensitivity")
    update = subtract({name: _at_least_float32(tensor) for name, tensor in model.items()}, start)
    length = norm(update)
    if noise_multiplier == 0.0 and (length <= clip_norm or math.isinf(clip_norm)):
        return Sanitised(dict(model), length)
    if not math.isfinite(length):
        update = {name: torch.zeros_like(tensor) for name, tensor in update.items()}
    scale = min(1.0, clip_norm / length * _MARGIN) if 0 < length < math.inf else 1.0
    if noise_multiplier > 0:
        add_noise_(update.values(), stream, scale=scale, clip_norm=clip_norm, noise_multiplier=noise_multiplier)
    else:
        for tensor in update.values():
            tensor.mul_(scale)
    return Sanitised({name: tensor.add_(start[name]).to(model[name].dtype) for name, tensor in update.items()}, length)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(slots=True)
class PrivacyLedger:
    """The budget that a node has spent: exact if every sample rate is 1, else by Opacus' accountants."""

    history: list[tuple[float, float, int]] = field(default_factory=list)
    """Sequences of equal steps: noise multiplier, sample rate, number of steps."""

    def step(self, noise_multiplier: float, sample_rate: float = 1.0) -> None:
        """Record a release."""
        self.history = list(_with_steps(tuple(self.history), noise_multiplier, sample_rate, 1))

    def epsilon(self, delta: float) -> float:
        """Return the epsilon spent at `delta`, an upper bound; infinity if any release had no noise.

        It is exact (Balle and Wang, arXiv 1805.06530) if every sample rate is 1. Otherwise the PRV accountant (Gopi et
        al., arXiv 2106.02848) computes it. For an epsilon in the hundreds, or very many steps, PRV would be wrong or
        too expensive; the looser RDP accountant takes its place.
        """
        return _epsilons(tuple(self.history), delta)[0]

    def epsilon_rdp(self, delta: float) -> float:
        """Return the epsilon spent at `delta` by Renyi DP (Mironov, arXiv 1702.07476), a looser bound."""
        return _epsilons(tuple(self.history), delta)[1]

    def epsilon_after(
        self, noise_multiplier: float, delta: float, sample_rate: float = 1.0, num_steps: int = 1
    ) -> float:
        """Return the epsilon at `delta` after `num_steps` more releases."""
        history = _with_steps(tuple(self.history), noise_multiplier, sample_rate, num_steps)
        return _epsilons(history, delta)[0]


History = tuple[tuple[float, float, int], ...]


def _with_steps(history: History, noise_multiplier: float, sample_rate: float, num_steps: int) -> History:
    if history and history[-1][:2] == (noise_multiplier, sample_rate):
        return (*history[:-1], (noise_multiplier, sample_rate, history[-1][2] + num_steps))
    return (*history, (noise_multiplier, sample_rate, num_steps))


@lru_cache(maxsize=4096)
def _epsilons(history: History, delta: float) -> tuple[float, float]:
    if not history:
        return 0.0, 0.0
    if any(noise == 0.0 for noise, _, _ in history):
        return math.inf, math.inf
    from opacus.accountants import PRVAccountant, RDPAccountant

    loose = _epsilon_by(RDPAccountant(), history, delta)
    if all(rate == 1.0 for _, rate, _ in history):
        mu = composed_mu((noise, steps) for noise, _, steps in history)
        return gaussian_epsilon(mu, delta), max(0.0, loose)
    try:
        is_reliable = _prv_is_reliable(history, _epsilon_by(RDPAccountant(), history, delta / 4000), delta)
        tight = _epsilon_by(PRVAccountant(), history, delta) if is_reliable else math.nan
    except (ValueError, RuntimeError, OverflowError, MemoryError):
        tight = math.nan
    return max(0.0, tight if math.isfinite(tight) else loose), max(0.0, loose)


def _epsilon_by(accountant: Any, history: History, delta: float) -> float:
    accountant.history = list(history)
    with warnings.catch_warnings():
        # RDP warns that "optimal order is the largest alpha"; its bound is then looser, but valid
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta=delta))


def _prv_is_reliable(history: History, span: float, delta: float) -> bool:
    """Whether Opacus' PRV accountant gives a correct result within seconds and megabytes.

    It uses a mesh over [-span, span], where span is the epsilon of RDP at `delta / 4000`, and computes exp of it. If
    float64 overflows, its epsilon is infinite or even too small. The mesh grows with 1 / noise_multiplier^2.
    """
    num_steps = sum(steps for _, _, steps in history)
    num_cells = 2 * span / 0.01 * math.sqrt(num_steps * math.log(12_000 / delta) / 2)
    return span < 650 and num_cells < 2**21
