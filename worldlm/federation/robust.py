"""Means that a few participants cannot take wherever they like."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from worldlm.federation.averaging import weighted_mean
from worldlm.federation.parameters import Tensors, chunks, distance


@torch.no_grad()
def trimmed_mean(models: Sequence[Mapping[str, Tensor]], trim: int) -> Tensors:
    """Return, coordinate by coordinate, the mean of what is left without the smallest and the largest values.

    With `trim` of 0 it is the mean, and with the most that leaves one value or two it is the median (Yin et al., arXiv
    1803.01498). Every coordinate lies within those of the others where at most `trim` participants lie.

    Args:
        models: Tensors by name, the same names and shapes in each; all models weigh the same.
        trim: Values that are left out at each end; twice as many must leave one.

    Returns:
        New tensors. Beside them, one tensor of every model is held at a time.

    Raises:
        ValueError: If nothing would be left.
    """
    if not 0 <= 2 * trim < len(models):
        raise ValueError(f"of {len(models)} models, {trim} cannot be left out at each end")
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
    """Return the median of every coordinate, of an even number of models the mean of the two in the middle."""
    return trimmed_mean(models, (len(models) - 1) // 2)


@torch.no_grad()
def norm_bounded_mean(
    models: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    start: Mapping[str, Tensor],
    max_norm: float | None = None,
) -> Tensors:
    """Return the weighted mean of models none of which moved further than a norm from where all started.

    Those that did are drawn back on their way (Sun et al., arXiv 1911.07963).

    Args:
        models: Tensors by name, the same names and shapes in each.
        weights: One per model, as in `weighted_mean`.
        start: Where the models started, by name.
        max_norm: Largest L2 norm of `model - start`, all tensors taken as one vector; None: the median of the norms.

    Returns:
        New tensors, as of `weighted_mean`.
    """
    norms = [distance(model, start) for model in models]
    bound = statistics.median(norms) if max_norm is None else max_norm
    kept = [weight * min(1.0, bound / norm) if norm else weight for weight, norm in zip(weights, norms, strict=True)]
    back = {name: start[name] for name in models[0]}
    held_back = sum(weight - one for weight, one in zip(weights, kept, strict=True))
    return weighted_mean([*models, back], [*kept, held_back])
