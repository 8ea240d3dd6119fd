"""Validates the optimizer states of a checkpoint."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from worldlm.distributed.fsdp import shape_of
from worldlm.federation.type_checks import matches_type

_MOMENTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"}


def check_groups(current: dict[str, Any], saved: dict[str, Any]) -> None:
    """Check that the saved settings of a param group, or of a scheduler, have the types of this run's settings.

    Raises:
        ValueError: Names the first setting that has another type.
    """
    for name, value in current.items():
        if name != "params" and not _is_compatible(saved.get(name, value), value):
            raise ValueError(f"{name} is {str(saved[name])[:100]}, but {str(value)[:100]} in this run")


def _is_compatible(saved: Any, current: Any) -> bool:
    """Return whether a saved value can replace the current one: a bool a bool, a number a number, also in lists."""
    if isinstance(current, bool):
        return saved is None or isinstance(saved, bool)
    if isinstance(current, int | float):
        return isinstance(saved, int | float) or (isinstance(saved, Tensor) and saved.numel() == 1)
    if isinstance(current, list | tuple):
        return (
            isinstance(saved, list | tuple) and all(map(_is_compatible, saved, current)) and len(saved) == len(current)
        )
    return True


def check_moments(optimizer: Optimizer) -> None:
    """Check that a restored optimizer has the same entries for all weights, with the shapes of the weights.

    Raises:
        ValueError: If it does not.
    """
    for group in optimizer.param_groups:
        states = {
            parameter: optimizer.state[parameter] for parameter in group["params"] if parameter in optimizer.state
        }
        if len({frozenset(state) for state in states.values()}) > 1:
            raise ValueError("the optimizer state does not have the same entries for all weights")
        for parameter, state in states.items():
            for name in sorted(_MOMENTS & state.keys()):
                if (shape := shape_of(state[name])) != parameter.shape:
                    raise ValueError(f"{name} has shape {[*shape]}, but its weights have shape {[*parameter.shape]}")


def check_optimizer(state: dict[str, Any]) -> None:
    """Check that the saved optimizer and schedulers of a node have the structure that WorldLM saves.

    Raises:
        KeyError, TypeError: If they have another structure.
    """
    optimizer = state["optimizer"]
    groups, schedulers = optimizer["param_groups"], state["schedulers"]
    if not (
        matches_type(groups, list[dict[str, Any]]) and all(matches_type(group["params"], list[int]) for group in groups)
    ):
        raise TypeError("optimizer param_groups have the wrong type")
    if not (
        matches_type(optimizer["state"], dict[int, dict[str, Any]]) and matches_type(schedulers, list[dict[str, Any]])
    ):
        raise TypeError("optimizer or scheduler states have the wrong type")
