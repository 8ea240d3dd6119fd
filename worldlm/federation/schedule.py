"""Rates that change linearly from the first round to the last."""

from collections.abc import Sequence
from typing import TypeAlias

Rate: TypeAlias = float | tuple[float, float]
"""A number for all rounds, or two for the first and the last round, with linear interpolation between them."""


def check_rate(name: str, rate: Rate) -> Rate:
    """Return a rate, or a list of two as a tuple.

    Raises:
        ValueError: If it is not one or two numbers above 0 and at most 1; the message contains `name`.
    """
    ends = tuple(rate) if isinstance(rate, Sequence) and not isinstance(rate, str) else (rate,)
    numbers = [end for end in ends if isinstance(end, (int, float)) and 0 < end <= 1]
    if len(ends) > 2 or len(numbers) != len(ends) or not ends:
        raise ValueError(
            f"{name} must be a number above 0 and at most 1, or two such numbers, first and last, got {rate!r}"
        )
    return (ends[0], ends[1]) if len(ends) == 2 else numbers[0]


def in_round(rate: Rate, number: int, num_rounds: int | None) -> float:
    """Return the value of a rate in a round.

    Args:
        rate: The rate.
        number: The round, from 0.
        num_rounds: Number of rounds of the whole run; None or -1 if it is unlimited.

    Raises:
        ValueError: If the rate changes and the number of rounds is unlimited.
    """
    if not isinstance(rate, tuple):
        return rate
    if num_rounds is None or num_rounds < 0:
        raise ValueError(f"a rate of {list(rate)} changes until the last round: set trainer.max_epochs")
    first, last = rate
    done = min(1.0, number / max(1, num_rounds - 1))
    return first + (last - first) * done
