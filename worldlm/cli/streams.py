"""Standard streams that are closed, full or of a narrow encoding: no command is lost with its output."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, TextIO

_NAMES = {"stdout": "standard output", "stderr": "standard error"}


class OutputLost(OSError):
    """The output of a command, which is its result, cannot be written."""


class _Stream:
    """Writes to a stream until that fails, and then nowhere.

    Args:
        stream: The stream.
        on_failure: Called once, with the error.
    """

    def __init__(self, stream: TextIO | BinaryIO, on_failure: Callable[[OSError], None]) -> None:
        self._stream = stream
        self._on_failure = on_failure

    @property
    def buffer(self) -> _Stream:
        """The stream of bytes below a stream of text."""
        return _Stream(
            self._stream.buffer,  # type: ignore[union-attr]
            self._on_failure,
        )

    def write(self, text: Any) -> int:
        """Write a text, or bytes."""
        return self._attempt(lambda: self._stream.write(text))

    def flush(self) -> None:
        """Write what is buffered."""
        self._attempt(lambda: self._stream.flush() or 0)

    def _attempt(self, action: Callable[[], int]) -> int:
        try:
            return action()
        except OSError as error:
            with suppress(OSError):  # of a stream that is no file
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())  # also for native code, and for what is buffered
                os.close(nowhere)
            self._on_failure(error)
            return 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def safe_streams(*, is_result: bool) -> Iterator[None]:
    """Open standard streams that are closed, and let none of them end a command that does not need it.

    A character that the encoding of a stream lacks is written as an escape.

    Args:
        is_result: Whether standard output is the command's result. Otherwise the command goes on without it.

    Raises:
        OutputLost: If the result cannot be written.
    """
    _open_closed()
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def report(error: OSError) -> None:
        if is_result:
            raise OutputLost(error.errno, error.strerror, _NAMES["stdout"]) from error
        if error.errno != errno.EPIPE:  # a reader that has seen enough, such as head
            print(f"worldlm: warning: {_NAMES['stdout']} cannot be written: {error.strerror}", file=sys.stderr)

    sys.stdout = _Stream(before[0], report)
    sys.stderr = _Stream(before[1], lambda _: None)
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _open_closed() -> None:
    """Open closed standard streams to nowhere, so that no file of the command gets their number."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (it stays open)
