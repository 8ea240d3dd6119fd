"""Small checks whose messages name the value and the allowed range."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

MAX_NAME_CHARACTERS = 100
_NAME = re.compile(r"[A-Za-z0-9_-]+")


class FieldError(ValueError):
    """All invalid fields of an object, so that a reader of files can report the line of each.

    Attributes:
        mistakes: field name -> the problem, without the field's name.
    """

    def __init__(self, mistakes: Mapping[str, str]) -> None:
        self.mistakes = dict(mistakes)
        super().__init__("; ".join(f"{field} {problem}" for field, problem in mistakes.items()))

    def __reduce__(self) -> tuple[type[FieldError], tuple[dict[str, str]]]:
        """Pickle the mistakes instead of the message."""
        return type(self), (self.mistakes,)


def raise_mistakes(checks: Mapping[str, str]) -> None:
    """Raise the problems that checks found.

    Args:
        checks: field name -> the problem, or an empty string.

    Raises:
        FieldError: if any check found a problem.
    """
    mistakes = {field: problem for field, problem in checks.items() if problem}
    if mistakes:
        raise FieldError(mistakes)


def out_of_range(
    value: float | None,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> str:
    """Return why a number is outside its range, or an empty string. None is always in range."""
    if value is None:
        return ""
    bounds = [
        ("above", above, above is None or value > above),
        ("at least", at_least, at_least is None or value >= at_least),
        ("below", below, below is None or value < below),
        ("at most", at_most, at_most is None or value <= at_most),
    ]
    if math.isfinite(value) and all(holds for _, _, holds in bounds):
        return ""
    allowed = " and ".join(f"{word} {bound:g}" for word, bound, _ in bounds if bound is not None)
    return f"must be a finite number {allowed}, but is {value!r}"


def bad_name(value: str) -> str:
    """Return why a text cannot be a name, or an empty string."""
    if _NAME.fullmatch(value) and len(value) <= MAX_NAME_CHARACTERS:
        return ""
    allowed = f"1 to {MAX_NAME_CHARACTERS} letters, digits, '_' or '-'"
    return f"must be {allowed}, but is {shorten(repr(value))}"


def shorten(text: str, num_characters: int = 60) -> str:
    """Shorten a text that is too long for one line of an error."""
    return text if len(text) <= num_characters else f"{text[: num_characters - 3]}..."
