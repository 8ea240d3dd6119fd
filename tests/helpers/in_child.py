"""Runs a function in a forked process. gRPC must not be used in a process that forks others later."""

from __future__ import annotations

import multiprocessing
import traceback
import warnings
from collections.abc import Callable
from typing import Any


def in_child(function: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Return what a function returns in a forked process."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        try:
            sender.send((function(), ""))
        except BaseException:
            sender.send((None, traceback.format_exc()))

    process = context.Process(target=run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking, which is safe with one thread
        process.start()
    assert receiver.poll(seconds), "the process hangs"
    result, error = receiver.recv()
    process.kill()
    process.join()
    assert not error, error
    return result
