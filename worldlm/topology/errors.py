"""Errors that a user can fix, and small helpers for their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """All mistakes in a file, one line each.

    Attributes:
        mistakes: the lines, as `file:line: problem`.
    """

    def __init__(self, mistakes: Sequence[str]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(self.mistakes))

    def __reduce__(self) -> tuple[type[UserError], tuple[tuple[str, ...]]]:
        """Pickle the mistakes instead of the message."""
        return type(self), (self.mistakes,)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known name, or an empty string."""
    by_fold = {candidate.casefold(): candidate for candidate in known}
    near = difflib.get_close_matches(name.casefold()[:200], by_fold, n=1, cutoff=0.6)
    return f"; did you mean {by_fold[near[0]]!r}?" if near else ""


def join_names(names: Iterable[str], most: int = 10) -> str:
    """Return the first `most` names, separated by commas, and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def reason(error: BaseException) -> str:
    """Return the type and the message of an error in one line, for a report about an unreadable file."""
    return f"{type(error).__name__} {' '.join(str(error).split())[:200]}"


def printable(text: str) -> str:
    """Return a text with control and other unprintable characters written as escapes."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
