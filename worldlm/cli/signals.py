"""Signals that stop a command: it ends with a line that says so."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

Handler = Callable[[int, FrameType | None], object]

STOPPED = 143
"""The exit status of a command that SIGTERM, SIGHUP or SIGUSR1 stopped."""
INTERRUPTED = 130
"""The exit status of a command that Ctrl-C stopped at once."""


class Stopped(SystemExit):
    """A signal ends the command now."""

    def __init__(self, signum: int) -> None:
        super().__init__(INTERRUPTED if signum == signal.SIGINT else STOPPED)
        self.reason = "interrupted" if signum == signal.SIGINT else f"stopped by {signal.Signals(signum).name}"


def stop(signum: int, _: FrameType | None) -> NoReturn:
    """Handle a signal: end the command now. The next such signal ends the process without clearing up."""
    signal.signal(signum, signal.SIG_DFL)
    raise Stopped(signum)


STOP_AT_ONCE: Mapping[signal.Signals, Handler] = {
    signal.SIGTERM: stop,
    signal.SIGHUP: stop,  # sent when the terminal or the connection is closed
    signal.SIGUSR1: stop,  # sent by SLURM before the time is over
}
"""The handlers of all commands; a fit has its own while it trains."""


@contextmanager
def handling(handlers: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    """Handle signals in this process, but not in those that it forks.

    A signal that is ignored stays so, because nohup ignores SIGHUP. Only the main thread can handle signals; other
    threads, such as those of a notebook, leave them as they are.
    """
    own = os.getpid()
    is_main = threading.current_thread() is threading.main_thread()
    before = {signum: signal.getsignal(signum) for signum in handlers} if is_main else {}
    changed = [signum for signum, handler in before.items() if handler is not signal.SIG_IGN]
    for signum in changed:
        handler = handlers[signum]
        signal.signal(signum, lambda *call, handler=handler: handler(*call) if os.getpid() == own else None)
    try:
        yield
    finally:
        for signum in changed:
            signal.signal(signum, before[signum])
