"""Update-level differential privacy: clip, noise, and the account of what was spent.

The unit of privacy is the node: its whole upload is clipped and noised, so that the presence of the node, or
of the whole federation below it, is what the guarantee hides (McMahan et al., arXiv 1710.06963).
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Generator, Tensor

from worldlm.federation.gaussian import composed_mu, gaussian_epsilon
from worldlm.federation.parameters import Tensors, norm, subtract

# A clipped update stays below the bound by more than the rounding of float32.
_MARGIN = 1.0 - 2.0**-20


@dataclass(frozen=True, slots=True)
class Sanitised:
    """A model that may leave its node."""

    tensors: Tensors
    update_norm: float
    """L2 norm of the update before clipping; not finite where the update was not."""


@torch.no_grad()
def sanitise(
    model: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    *,
    clip_norm: float,
    noise_multiplier: float,
    generator: Generator,
) -> Sanitised:
    """Clip the update `model - start` to an L2 norm and add Gaussian noise.

    ``U <- U * min(1, C / |U|) + N(0, (sigma C)^2)`` per coordinate, all tensors taken as one vector. An update that is
    not finite is clipped to nothing: what leaves is noise. To send none would tell that it diverged.

    Args:
        model: What the node trained, by name.
        start: What its parent already knows, by name.
        clip_norm: C, above 0; infinity clips nothing, and then no noise is possible.
        noise_multiplier: sigma, 0 for none.
        generator: Source of the noise, on the CPU.

    Returns:
        New tensors `start + U`; the model's own where nothing had to be done.

    Raises:
        ValueError: If noise is asked for without a bound.
    """
    if noise_multiplier > 0 and math.isinf(clip_norm):
        raise ValueError("noise_multiplier needs a finite clip_norm: unclipped updates have no sensitivity")
    update = subtract({name: _at_least_float32(tensor) for name, tensor in model.items()}, start)
    length = norm(update)
    is_bounded = length <= clip_norm or math.isinf(clip_norm)
    scale = 1.0 if is_bounded else clip_norm / length * _MARGIN
    if is_bounded and noise_multiplier == 0.0:
        return Sanitised(dict(model), length)
    for name, tensor in update.items():
        tensor.mul_(scale) if math.isfinite(length) else tensor.zero_()
        if noise_multiplier > 0:
            noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.add_(noise.to(tensor.device), alpha=noise_multiplier * clip_norm)
        update[name] = tensor.add_(start[name]).to(model[name].dtype)
    return Sanitised(update, length)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(slots=True)
class PrivacyLedger:
    """What one node has spent: exactly where it took part in all that was sampled, else by Opacus' accountants."""

    history: list[tuple[float, float, int]] = field(default_factory=list)
    """Runs of equal steps: noise multiplier, sample rate, number of steps."""

    def step(self, noise_multiplier: float, sample_rate: float = 1.0) -> None:
        """Write down one release."""
        self.history = list(_with_steps(tuple(self.history), noise_multiplier, sample_rate, 1))

    def epsilon(self, delta: float) -> float:
        """Return the epsilon spent at `delta`, an upper bound: infinity once a release had no noise.

        Exact (Balle and Wang, arXiv 1805.06530) where every sample rate is 1. Else by PRV (Gopi et al., arXiv
        2106.02848), and the looser RDP figure where PRV would be false or too large to compute, that is for epsilons in
        the hundreds and very many steps.
        """
        return _epsilons(tuple(self.history), delta)[0]

    def epsilon_rdp(self, delta: float) -> float:
        """Return the epsilon spent at `delta` by Renyi DP (Mironov, arXiv 1702.07476), the looser figure."""
        return _epsilons(tuple(self.history), delta)[1]

    def epsilon_after(
        self, noise_multiplier: float, delta: float, sample_rate: float = 1.0, num_steps: int = 1
    ) -> float:
        """Return the epsilon at `delta` that `num_steps` more releases would bring the node to."""
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

    loose = _ask(RDPAccountant(), history, delta)
    if all(rate == 1.0 for _, rate, _ in history):
        mu = composed_mu((noise, steps) for noise, _, steps in history)
        return gaussian_epsilon(mu, delta), max(0.0, loose)
    try:
        sound = _prv_is_sound(history, _ask(RDPAccountant(), history, delta / 4000), delta)
        tight = _ask(PRVAccountant(), history, delta) if sound else math.nan
    except (ValueError, RuntimeError, OverflowError, MemoryError):
        tight = math.nan
    return max(0.0, tight if math.isfinite(tight) else loose), max(0.0, loose)


def _ask(accountant: Any, history: History, delta: float) -> float:
    accountant.history = list(history)
    with warnings.catch_warnings():
        # RDP: "optimal order is the largest alpha", a looser figure but a true one
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta=delta))


def _prv_is_sound(history: History, span: float, delta: float) -> bool:
    """Whether Opacus' PRV accountant has a true answer within seconds and megabytes.

    It lays a mesh over [-span, span], span being what RDP tells at `delta / 4000`, and takes exp of it: where
    float64 overflows, its epsilon is infinite or, worse, too small. The mesh grows as 1 / noise_multiplier^2.
    """
    num_steps = sum(steps for _, _, steps in history)
    num_cells = 2 * span / 0.01 * math.sqrt(num_steps * math.log(12_000 / delta) / 2)
    return span < 650 and num_cells < 2**21
