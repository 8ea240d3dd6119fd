"""Errors that a user can put right, and the small helpers that word them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """All mistakes of one file, one line each.

    Attributes:
        mistakes: the lines, as `file:line: what is wrong`.
    """

    def __init__(self, mistakes: Sequence[str]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(self.mistakes))

    def __reduce__(self) -> tuple[type[UserError], tuple[tuple[str, ...]]]:
        """Pickle by the mistakes, not by the message."""
        return type(self), (self.mistakes,)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known name, or an empty string."""
    by_fold = {candidate.casefold(): candidate for candidate in known}
    near = difflib.get_close_matches(name.casefold()[:200], by_fold, n=1, cutoff=0.6)
    return f"; did you mean {by_fold[near[0]]!r}?" if near else ""


def join_names(names: Iterable[str], most: int = 10) -> str:
    """Return the first of some names with commas between, and how many more there are."""
    told = list(names)
    return ", ".join(told[:most]) + (f" and {len(told) - most} more" if len(told) > most else "")


def reason(error: BaseException) -> str:
    """Return what an error is and says, in a line, for a file over which something stumbled."""
    return f"{type(error).__name__} {' '.join(str(error).split())[:200]}"


def printable(text: str) -> str:
    """Return a text with what a terminal would obey, and what has no form, written as escapes."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
