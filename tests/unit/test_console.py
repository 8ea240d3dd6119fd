import logging
import threading

import pytest

from worldlm.cli.console import log_to_terminal, quiet_libraries


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warnings.showwarning", None)
    monkeypatch.setattr(threading, "excepthook", None)
    quiet_libraries()


def _fail(error: Exception) -> None:
    def run() -> None:
        raise error

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def test_a_thread_that_cannot_write_says_so_in_a_line(hooks: None, capsys: pytest.CaptureFixture[str]) -> None:
    _fail(OSError(28, "No space left on device"))
    assert capsys.readouterr().err == "worldlm: warning: in the background: [Errno 28] No space left on device\n"


def test_what_nobody_foresaw_is_told_in_full(hooks: None, capsys: pytest.CaptureFixture[str]) -> None:
    _fail(RuntimeError("a bug"))
    assert "Traceback" in capsys.readouterr().err


def test_a_log_message_stays_one_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    message = "the checkpoint before the topology change is kept as " + "x" * 80
    with log_to_terminal():
        logging.getLogger("worldlm.anything").info(message)
    assert capsys.readouterr().err == f"{message}\n"


def test_the_report_of_a_profiler_is_shown(hooks: None) -> None:
    assert logging.getLogger("lightning.pytorch.profilers.profiler").isEnabledFor(logging.INFO)
    assert not logging.getLogger("lightning.pytorch.utilities.rank_zero").isEnabledFor(logging.INFO)
