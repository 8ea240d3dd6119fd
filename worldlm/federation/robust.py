"""Robust means, which limit the influence of a few participants."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from worldlm.federation.averaging import weighted_mean
from worldlm.federation.parameters import Tensors, chunks, distance


@torch.no_grad()
def trimmed_mean(models: Sequence[Mapping[str, Tensor]], trim: int) -> Tensors:
    """Return, for each coordinate, the mean without the smallest and the largest values.

    With a `trim` of 0 it is the mean. With the largest `trim`, which leaves one or two values, it is the median (Yin et
    al., arXiv 1803.01498). If at most `trim` participants are faulty, every coordinate is within the range of the
    others.

    Args:
        models: Tensors by name, the same names and shapes in each; all models weigh the same.
        trim: Number of values to drop at each end; at least one value must remain.

    Returns:
        New tensors. In addition, one tensor of every model is in memory at a time.

    Raises:
        ValueError: If no value would remain.
    """
    if not 0 <= 2 * trim < len(models):
        raise ValueError(f"{trim} of {len(models)} models cannot be dropped at each end")
    means = {}
    for name, like in models[0].items():
        mean = torch.empty_like(like)
        tensors = [model[name] for model in models]
        for target, *values in zip(chunks(mean), *map(chunks, tensors), strict=True):
            ordered = torch.stack(values).sort(dim=0).values
            torch.mean(ordered[trim : len(models) - trim], dim=0, out=target)
        means[name] = mean
    return means


def median(models: Sequence[Mapping[str, Tensor]]) -> Tensors:
    """Return the median of every coordinate; with an even number of models, the mean of the two middle values."""
    return trimmed_mean(models, (len(models) - 1) // 2)


@torch.no_grad()
def norm_bounded_mean(
    models: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    start: Mapping[str, Tensor],
    max_norm: float | None = None,
) -> Tensors:
    """Return the weighted mean of models after clipping the norm of their updates (Sun et al., arXiv 1911.07963).

    Args:
        models: Tensors by name, the same names and shapes in each.
        weights: One per model, as in `weighted_mean`.
        start: The tensors from which all models started, by name.
        max_norm: Largest L2 norm of `model - start`, all tensors taken as one vector; None takes the median of the
            norms.

    Returns:
        New tensors, as of `weighted_mean`.
    """
    norms = [distance(model, start) for model in models]
    bound = statistics.median(norms) if max_norm is None else max_norm
    clipped = [weight * min(1.0, bound / norm) if norm else weight for weight, norm in zip(weights, norms, strict=True)]
    # Clipping an update by a factor f equals giving the model the weight f and the start the weight 1 - f.
    origin = {name: start[name] for name in models[0]}
    start_weight = sum(weight - reduced for weight, reduced in zip(weights, clipped, strict=True))
    return weighted_mean([*models, origin], [*clipped, start_weight])
