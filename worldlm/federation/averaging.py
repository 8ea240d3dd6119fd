"""Weighted averaging of models, and the step of the outer optimizer towards the average."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from worldlm.federation.parameters import Tensors, chunks


@torch.no_grad()
def weighted_mean(models: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Tensors:
    """Return the weighted mean of models, summed in the given order.

    Args:
        models: Tensors by name, the same names and shapes in each.
        weights: One per model, not negative, not all 0; their sum may differ from 1.

    Returns:
        New tensors. There is one accumulator for all models, and one tensor of one model is read at a time.

    Raises:
        ValueError: If a weight is negative, or their sum is not finite and above 0.
    """
    total = sum(weights)
    if not 0 < total < math.inf or min(weights) < 0:
        raise ValueError(f"weights of an average must not be negative and must sum to more than 0, got {list(weights)}")
    shares = [weight / total for _, weight in zip(models, weights, strict=True)]
    return {name: weighted_sum(models, name, shares) for name in models[0]}


@torch.no_grad()
def weighted_sum(models: Sequence[Mapping[str, Tensor]], name: str, weights: Sequence[float]) -> Tensor:
    """Return `sum_i weights_i models_i[name]` in new memory, summed in the given order.

    The tensor of a model is read, added and released before the next one. A sum over all models chunk by chunk, which
    stays in the processor's cache, was measured: it is not faster if a core reads as fast as it copies.
    """
    total: Tensor | None = None
    for model, weight in zip(models, weights, strict=True):
        total = model[name] * weight if total is None else total.add_(model[name], alpha=weight)
    assert total is not None, "there is at least one model"
    return total


@torch.no_grad()
def move_towards_(target: Mapping[str, Tensor], source: Mapping[str, Tensor], rate: float) -> None:
    """Move, in place, the tensors of `target` that are in `source`: `target <- (1 - rate) target + rate source`.

    Args:
        target: Tensors by name; overwritten.
        source: The tensors to move towards, by name.
        rate: In [0, 1]; at 1 they become exact copies.

    Raises:
        KeyError: If a name of `source` is not in `target`.
    """
    for name, tensor in source.items():
        target[name].copy_(tensor) if rate == 1.0 else target[name].lerp_(tensor, rate)


class OuterStep(NamedTuple):
    """The result of an outer step."""

    state: dict[int, dict[str, Tensor]]
    """The optimizer's state, to pass to the next step with the same names."""
    norm: float
    """L2 norm of the pseudo-gradient, all tensors taken as one vector."""


@torch.no_grad()
def outer_step_(
    parameters: Mapping[str, Tensor],
    mean: Mapping[str, Tensor],
    optimizer_class: Callable[..., Optimizer],
    arguments: Mapping[str, float | bool],
    state: dict[int, dict[str, Tensor]] | None = None,
) -> OuterStep:
    """Step the parameters, in place, from the start of a round towards the participants' mean.

    The optimizer gets the pseudo-gradient `start - mean`, so that SGD(lr=1) without
    momentum *is* FedAvg (Reddi et al., arXiv 2003.00295), and Nesterov SGD is the outer step of DiLoCo
    (arXiv 2311.08105). Tensors are stepped one by one, so that no third model is needed in memory.

    Args:
        parameters: The start of the round, by name; overwritten.
        mean: The participants' mean, by name; only its names are stepped.
        optimizer_class: Any class of `torch.optim` that steps every tensor independently (all except LBFGS).
        arguments: Its keyword arguments, such as lr and momentum.
        state: The state that the previous call returned, None on the first; its tensors are overwritten too.
    """
    targets = {name: torch.nn.Parameter(parameters[name], requires_grad=True) for name in mean}
    scratch: dict[torch.dtype, Tensor] = {}
    new_state: dict[int, dict[str, Tensor]] = {}
    square = 0.0
    for i, (name, target) in enumerate(targets.items()):
        optimizer = optimizer_class([target], **arguments)
        if state and i in state:
            optimizer.load_state_dict({**optimizer.state_dict(), "state": {0: state[i]}})
        target.grad = _buffer(scratch, target.data)
        for gradient, start, average in zip(*map(chunks, (target.grad, target.data, mean[name])), strict=True):
            torch.sub(start, average, out=gradient)
            square += float(torch.linalg.vector_norm(gradient, dtype=torch.float64)) ** 2
        optimizer.step()
        target.grad = None
        if tensor_state := optimizer.state_dict()["state"]:
            new_state[i] = tensor_state[0]
    return OuterStep(new_state, math.sqrt(square))


def _buffer(scratch: dict[torch.dtype, Tensor], like: Tensor) -> Tensor:
    """Return memory shaped like a tensor, reused for all tensors: new memory for each would cost more than the step."""
    buffer = scratch.get(like.dtype)
    if buffer is None or buffer.numel() < like.numel():
        buffer = scratch[like.dtype] = like.new_empty(like.numel())
    return buffer[: like.numel()].view_as(like)
