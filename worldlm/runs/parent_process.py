"""Ends a process when the process that started it ends, even if that was killed and could not end it itself."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

_VARIABLE = "WORLDLM_PARENT"
"""Environment variable with the id of the process that starts another, and the signal that is to end the other."""
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux
_SECONDS_BETWEEN_LOOKS = 1.0


def bound_to_this_process(signum: signal.Signals) -> dict[str, str]:
    """Return the environment variables of a process that is to receive a signal when this process ends.

    The other process calls `follow_parent`.
    """
    return {_VARIABLE: f"{os.getpid()} {int(signum)}"}


def follow_parent() -> None:
    """End this process with the process that started it.

    This concerns the processes that WorldLM starts with `bound_to_this_process`, and those that torchrun starts, whose
    agent sends SIGTERM when it can. All others continue. The variable is removed, so that processes that this one
    starts do not read it.
    """
    parent, _, signum = os.environ.pop(_VARIABLE, "").partition(" ")
    if parent.isdigit() and signum.isdigit():
        end_with(int(parent), signal.Signals(int(signum)))
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        end_with(os.getppid(), signal.SIGTERM)


def end_with(parent: int, signum: signal.Signals) -> None:
    """Send this process a signal when another process ends, or at once if it has ended.

    Linux sends the signal if the other process has started this one. Otherwise a thread looks once a second.

    Args:
        parent: The id of the other process.
        signum: The signal.
    """
    direct = os.getppid() == parent
    if direct and _ask_kernel(signum) and os.getppid() == parent:
        return  # if it had ended before the kernel was asked, this process would have another parent now
    threading.Thread(target=_watch, args=(parent, direct, signum), daemon=True, name="parent").start()


def _ask_kernel(signum: signal.Signals) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    import ctypes  # late: only processes that another one started need it

    try:
        return bool(ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, int(signum), 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def _watch(parent: int, direct: bool, signum: signal.Signals) -> None:
    while os.getppid() == parent if direct else _exists(parent):
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os.kill(os.getpid(), signum)


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    return True
