"""Weighted averaging of models, and the outer optimizer that takes the average as a step."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from worldlm.federation.parameters import Tensors


@torch.no_grad()
def weighted_mean(models: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Tensors:
    """Return the weighted mean of models, added up in the order given.

    Args:
        models: Tensors by name, the same names and shapes in each.
        weights: One per model, not negative, not all 0; they need not sum to 1.

    Returns:
        New tensors: one accumulator, whatever the number of models.

    Raises:
        ValueError: If a weight is negative, or their sum is not finite and above 0.
    """
    total = sum(weights)
    if not 0 < total < math.inf or min(weights) < 0:
        raise ValueError(f"weights of an average must not be negative and must sum to more than 0, got {list(weights)}")
    mean = {name: tensor * (weights[0] / total) for name, tensor in models[0].items()}
    for model, weight in zip(models[1:], weights[1:], strict=True):
        for name, tensor in mean.items():
            tensor.add_(model[name], alpha=weight / total)
    return mean


@torch.no_grad()
def move_towards_(target: Mapping[str, Tensor], source: Mapping[str, Tensor], rate: float) -> None:
    """Move, in place, the tensors of `target` that `source` names: `target <- (1 - rate) target + rate source`.

    Args:
        target: Tensors by name; overwritten.
        source: Where they move to, by name.
        rate: In [0, 1]; at 1 they become exact copies.

    Raises:
        KeyError: If `source` names one that `target` does not hold.
    """
    for name, tensor in source.items():
        target[name].copy_(tensor) if rate == 1.0 else target[name].lerp_(tensor, rate)


@torch.no_grad()
def outer_step_(
    parameters: Mapping[str, Tensor],
    mean: Mapping[str, Tensor],
    optimizer_class: Callable[..., Optimizer],
    arguments: Mapping[str, float | bool],
    state: dict[int, dict[str, Tensor]] | None = None,
) -> dict[int, dict[str, Tensor]]:
    """Step the parameters, in place, from where a round started towards the participants' mean.

    The gradient handed to the optimizer is the pseudo-gradient `start - mean`, so that SGD(lr=1) without
    momentum *is* FedAvg (Reddi et al., arXiv 2003.00295), and Nesterov SGD is the outer step of DiLoCo
    (arXiv 2311.08105).

    Args:
        parameters: The start of the round, by name; overwritten.
        mean: The participants' mean, by name; its names are the ones that are stepped.
        optimizer_class: Any class of `torch.optim`.
        arguments: Its keyword arguments, such as lr and momentum.
        state: What an earlier call returned, None on the first; its tensors are overwritten too.

    Returns:
        The optimizer's state, to be handed to the next call with the same names.
    """
    targets = []
    for name, average in mean.items():
        target = torch.nn.Parameter(parameters[name], requires_grad=True)
        target.grad = parameters[name] - average
        targets.append(target)
    optimizer = optimizer_class(targets, **arguments)
    if state:
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    optimizer.step()
    found: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return found
