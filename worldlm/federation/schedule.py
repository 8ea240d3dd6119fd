"""Figures that move from the first round to the last."""

from collections.abc import Sequence
from typing import TypeAlias

Rate: TypeAlias = float | tuple[float, float]
"""A figure for all rounds, or those of the first and of the last round, between which it moves evenly."""


def check_rate(name: str, rate: Rate) -> Rate:
    """Return a rate, or a list of two as a tuple.

    Raises:
        ValueError: If it is not one or two numbers above 0 and at most 1; the message calls it by `name`.
    """
    ends = tuple(rate) if isinstance(rate, Sequence) and not isinstance(rate, str) else (rate,)
    numbers = [one for one in ends if isinstance(one, (int, float)) and 0 < one <= 1]
    if len(ends) > 2 or len(numbers) != len(ends) or not ends:
        raise ValueError(f"{name} must be above 0 and at most 1, or two such, first and last, got {rate!r}")
    return (ends[0], ends[1]) if len(ends) == 2 else numbers[0]


def in_round(rate: Rate, number: int, num_rounds: int | None) -> float:
    """Return what a rate is in a round.

    Args:
        rate: The rate.
        number: The round, from 0.
        num_rounds: Rounds of the whole run; None or -1 if it has no end.

    Raises:
        ValueError: If the rate moves, and the run has no end.
    """
    if not isinstance(rate, tuple):
        return rate
    if num_rounds is None or num_rounds < 0:
        raise ValueError(f"a rate of {list(rate)} moves towards the last round: trainer.max_epochs must set one")
    first, last = rate
    done = min(1.0, number / max(1, num_rounds - 1))
    return first + (last - first) * done
