"""Validating the optimizer states of a checkpoint."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from worldlm.distributed.fsdp import shape_of
from worldlm.federation.type_checks import matches_type

_MOMENTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"}


def check_groups(own: dict[str, Any], saved: dict[str, Any]) -> None:
    """Check that saved settings of a param group, or of a scheduler, can take the place of this run's.

    Raises:
        ValueError: Names the first that cannot.
    """
    for name, value in own.items():
        if name != "params" and not _is_like(saved.get(name, value), value):
            raise ValueError(f"{name} is {str(saved[name])[:100]}, and here {str(value)[:100]}")


def _is_like(one: Any, own: Any) -> bool:
    """Whether one can stand for the other: a switch for a switch, a number for a number, alone or in a list."""
    if isinstance(own, bool):
        return one is None or isinstance(one, bool)
    if isinstance(own, int | float):
        return isinstance(one, int | float) or (isinstance(one, Tensor) and one.numel() == 1)
    if isinstance(own, list | tuple):
        return isinstance(one, list | tuple) and all(map(_is_like, one, own)) and len(one) == len(own)
    return True


def check_moments(optimizer: Optimizer) -> None:
    """Check that an optimizer which was restored keeps the same of all weights, in the shapes of these.

    Raises:
        ValueError: If it does not.
    """
    for group in optimizer.param_groups:
        states = {one: optimizer.state[one] for one in group["params"] if one in optimizer.state}
        if len({frozenset(own) for own in states.values()}) > 1:
            raise ValueError("not the same is kept of all weights")
        for parameter, own in states.items():
            for name in sorted(_MOMENTS & own.keys()):
                if (shape := shape_of(own[name])) != parameter.shape:
                    raise ValueError(f"{name} of shape {[*shape]} for weights of {[*parameter.shape]}")


def check_optimizer(state: dict[str, Any]) -> None:
    """Check that the saved optimizer and schedulers of a node are built as WorldLM saves them.

    Raises:
        KeyError, TypeError: If they are not.
    """
    optimizer = state["optimizer"]
    groups, schedulers = optimizer["param_groups"], state["schedulers"]
    if not (
        matches_type(groups, list[dict[str, Any]]) and all(matches_type(one["params"], list[int]) for one in groups)
    ):
        raise TypeError("optimizer param_groups have the wrong type")
    if not (
        matches_type(optimizer["state"], dict[int, dict[str, Any]]) and matches_type(schedulers, list[dict[str, Any]])
    ):
        raise TypeError("optimizer or scheduler states have the wrong type")
