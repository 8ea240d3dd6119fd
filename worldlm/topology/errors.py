"""Errors that a user can fix, and small helpers for their messages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

_ALIKE = 0.6
_NEARLY_EQUAL = 0.9


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
    """Return `; did you mean 'x'?` for the nearest known name, or an empty string.

    The nearest has the name's initials (`lr` for `learning_rate`), or is the last part of the path, or is spelt alike,
    or begins with the name, or its last part, as of `methods/fedavg`, is spelt alike.
    """
    by_fold = {candidate.casefold(): candidate for candidate in known}
    by_last = {re.split("[./]", fold)[-1]: fold for fold in reversed(by_fold)}
    fold = name.casefold()[:200]
    near = (
        [other for other in by_fold if fold and (_initials(other) == fold or _initials(fold) == other)]
        or difflib.get_close_matches(fold, by_fold, n=1, cutoff=_NEARLY_EQUAL)
        or [other for other in by_fold if other == re.split("[./]", fold)[-1]]
        or difflib.get_close_matches(fold, by_fold, n=1, cutoff=_ALIKE)
        or [candidate for candidate in by_fold if len(fold) > 2 and candidate.startswith(fold)]
        or [by_last[last] for last in difflib.get_close_matches(fold, by_last, n=1, cutoff=_ALIKE)]
    )
    return f"; did you mean {by_fold[near[0]]!r}?" if near else ""


def _initials(name: str) -> str:
    """Return a name with the initials of its last part: `optimizer.lr` for `optimizer.learning_rate`."""
    above, dot, last = name.rpartition(".")
    words = [word for word in re.split("[_-]", last) if word]
    return f"{above}{dot}{''.join(word[0] for word in words)}" if len(words) > 1 else ""


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Check that a setting has one of the allowed values.

    Raises:
        ValueError: If it has another; the message names the nearest.
    """
    if value not in allowed:
        hint = suggest(value, allowed) if isinstance(value, str) else ""
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}{hint}")


def join_names(names: Iterable[str], most: int = 10) -> str:
    """Return the first `most` names, separated by commas, and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def reason(error: BaseException) -> str:
    """Return the type and the message of an error in one line, for a report about an unreadable file."""
    return f"{type(error).__name__} {' '.join(str(error).split())[:200]}"


def is_panic(error: BaseException) -> bool:
    """Return whether a library in Rust failed. Such an error is no `Exception`, and its class cannot be imported."""
    return type(error).__name__ == "PanicException"


@contextmanager
def native_errors(problem: str) -> Iterator[None]:
    """Convert an error of a library's native code, which may have any class, into one line.

    Args:
        problem: What failed, the beginning of the line.

    Raises:
        ValueError: Instead of any error but those that end a process, and a lack of memory.
    """
    try:
        yield
    except MemoryError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise ValueError(f"{problem}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not empty, else its type."""
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)


def printable(text: str) -> str:
    """Return a text with control and other unprintable characters written as escapes."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
