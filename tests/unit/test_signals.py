"""Signals that stop a command, at any time but while a fit trains."""

import os
import signal
import sys
import threading

import pytest

from worldlm.cli import main
from worldlm.cli.signals import STOP_AT_ONCE, handling


@pytest.mark.parametrize(
    ("signum", "status", "line"),
    [
        (signal.SIGTERM, 143, "worldlm: stopped by SIGTERM\n"),
        (signal.SIGHUP, 143, "worldlm: stopped by SIGHUP\n"),
        (signal.SIGUSR1, 143, "worldlm: stopped by SIGUSR1\n"),
        (signal.SIGINT, 130, "worldlm: interrupted\n"),
    ],
)
def test_a_command_that_is_stopped_says_so(
    signum: signal.Signals,
    status: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    default_signals: None,
) -> None:
    monkeypatch.setattr(sys.modules[main.__module__], "_run", lambda words: os.kill(os.getpid(), signum))
    before = signal.getsignal(signum)
    assert main(["runs"]) == status
    assert capsys.readouterr().err == line
    assert signal.getsignal(signum) is before


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with handling(STOP_AT_ONCE):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_runs_commands_too() -> None:
    statuses = list[int]()
    thread = threading.Thread(target=lambda: statuses.append(main(["--version"])))
    thread.start()
    thread.join()
    assert statuses == [0]


def test_a_forked_process_does_not_handle_what_concerns_this_one(default_signals: None) -> None:
    with handling({signal.SIGHUP: lambda *_: os._exit(3)}):
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGHUP)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
