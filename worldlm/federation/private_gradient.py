"""The gradient of DP-SGD: clipped for each example, summed, and noised (Abadi et al., arXiv 1607.00133)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from worldlm.federation.noise_key import StreamFor
from worldlm.federation.parameters import Tensors
from worldlm.federation.rounded_gaussian import add_noise_

# Examples are clipped to a little less than the bound. The difference covers the rounding of their sum in float64, and
# the step of the grid to which the sum is snapped.
_MARGIN = 1.0 - 2.0**-16

_MOST_STEPS = 2**23
"""Bound on sigma times the root of the number of weights, for which the steps of the grid stay within this margin."""

_CHUNK = 2**22
"""Values that are converted to float64 at a time."""


@torch.no_grad()
def private_gradient(
    samples: Mapping[str, Tensor],
    *,
    clip_norm: float,
    noise_multiplier: float,
    expected_batch_size: float,
    stream: StreamFor,
) -> Tensors:
    """Return ``(sum_i g_i min(1, C / |g_i|) + N(0, (sigma C)^2)) / expected_batch_size``.

    A gradient that is not finite counts as 0. The batch may be empty: the result is then noise alone. The sum is made
    in float64, because rounding in float32 can exceed what the noise is made for (Casacuberta et al., arXiv
    2207.10635).

    Args:
        samples: The gradient of each example by parameter, shape `[batch, *shape]`.
        clip_norm: C, above 0: the largest L2 norm of the gradient of an example.
        noise_multiplier: sigma; 0 for none, else at least `MIN_NOISE_MULTIPLIER`.
        expected_batch_size: The mean number of examples in a batch.
        stream: Makes the random stream of the noise, given the sum.

    Returns:
        The gradient by parameter, in the type of `samples`.

    Raises:
        ValueError: If there is too much noise for the grid.
    """
    num_weights = sum(gradients.shape[1:].numel() for gradients in samples.values())
    if noise_multiplier * math.sqrt(num_weights) > _MOST_STEPS:
        raise ValueError(
            f"noise_multiplier is {noise_multiplier:g}: for a model of {num_weights:,} weights it must be at most "
            f"{_MOST_STEPS / math.sqrt(num_weights):g}"
        )
    factors = _clip_factors(samples, clip_norm)
    sums = {name: _weighted_sum(gradients, factors) for name, gradients in samples.items()}
    if noise_multiplier > 0:
        add_noise_(sums.values(), stream, scale=1.0, clip_norm=clip_norm, noise_multiplier=noise_multiplier)
    return {name: (total / expected_batch_size).to(samples[name].dtype) for name, total in sums.items()}


def _clip_factors(samples: Mapping[str, Tensor], clip_norm: float) -> Tensor:
    """Return the factor of each example, at most 1; NaN if its gradient is not finite. float64, shape [batch]."""
    norms = [
        torch.cat([torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64) for rows in _rows(gradients)])
        for gradients in samples.values()
    ]
    lengths = torch.stack(norms).norm(dim=0)
    return torch.where(lengths.isfinite(), (clip_norm * _MARGIN / lengths).clamp(max=1.0), torch.nan)


def _weighted_sum(gradients: Tensor, factors: Tensor) -> Tensor:
    """Return the sum of the gradients that are finite, each times its factor; float64, shape of the parameter."""
    total = torch.zeros(gradients.shape[1:].numel(), dtype=torch.float64, device=gradients.device)
    begin = 0
    for rows in _rows(gradients):
        weights = factors[begin : begin + len(rows)]
        valid = weights.isfinite()
        total += weights[valid] @ rows[valid].double()
        begin += len(rows)
    return total.view(gradients.shape[1:])


def _rows(gradients: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients as matrices with a row for each example, few enough at a time to convert to float64."""
    width = gradients.shape[1:].numel()
    return torch.split(gradients.reshape(len(gradients), width), max(1, _CHUNK // width))
