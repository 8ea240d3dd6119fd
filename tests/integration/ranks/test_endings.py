"""A process that stops, or is gone, while others wait for it."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from worldlm.callbacks import Averaging, LastCheckpoint
from worldlm.loop import strategy
from worldlm.loop.wire import RankLost

Make = Callable[..., Any]


class Ending(Callback):
    """Calls a function in the second round, at one rank."""

    def __init__(self, rank: int, end: Callable[[], None]) -> None:
        self.rank, self.end = rank, end

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.world.round == 1 and trainer.global_rank == self.rank:
            self.end()


def _fail() -> None:
    raise OSError("the machine is gone")


def test_a_lost_process_ends_the_others(star: Make, fit: Make, on_ranks: Make, tmp_path: Path) -> None:
    def run() -> str:
        try:
            fit(star("abc"), [Averaging(), LastCheckpoint(), Ending(1, _fail)], logger=CSVLogger(tmp_path, "", ""))
        except (RankLost, OSError) as error:
            return f"{type(error).__name__}: {error}"
        return "no error"

    first, second, third = on_ranks(3, run)
    assert second == "OSError: the machine is gone"
    assert first.startswith("RankLost: another process of the run is gone (")
    assert third.startswith("RankLost: another process of the run is gone (")
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()  # of the first round


def test_processes_of_two_runs_do_not_train_together(star: Make, fit: Make, on_ranks: Make) -> None:
    def run() -> str:
        try:
            fit(star("abc"), [Averaging()], seed=int(os.environ["RANK"]))
        except ValueError as error:
            return str(error)
        return "no error"

    host = socket.gethostname()
    told = (
        f"process 1 on {host} was not started as process 0 on {host} was: seed is 1 there and 0 at process 0 on {host}"
    )
    assert on_ranks(2, run) == [f"{told}\nstart all with the same recipe, topology, options and WorldLM"] * 2


def test_a_process_that_is_never_started(
    star: Make, fit: Make, on_ranks: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strategy, "MINUTES_TO_JOIN", 2 / 60)

    def run() -> str:
        if os.environ["RANK"] == "1":
            return "elsewhere"
        try:
            fit(star("ab"), [Averaging()])
        except RankLost as error:
            return str(error)
        return "no error"

    told, _ = on_ranks(2, run)
    assert told.startswith("the processes of the run did not find one another within ")
    assert "each must be started, and reach the others and 127.0.0.1" in told


def test_a_fit_may_take_longer_than_joining(star: Make, fit: Make, on_ranks: Make, monkeypatch: Any) -> None:
    monkeypatch.setattr(strategy, "MINUTES_TO_JOIN", 1.5 / 60)

    def run() -> int:
        return int(fit(star("ab"), [Averaging(), Ending(1, lambda: time.sleep(2.5))]).current_epoch)

    assert on_ranks(2, run) == [2, 2]


@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_stops_who_waits_too(rank: int, star: Make, fit: Make, on_ranks: Make, differences: Make) -> None:
    """The signal reaches all, as a scheduler sends it; one of them waits for the others' messages by then."""

    def run() -> int:
        parent = os.getppid()
        end = Ending(rank, lambda: [os.kill(pid, signal.SIGTERM) for pid in _children(parent)] and None)
        trainer = fit(star("abc"), [Averaging(), end], max_epochs=3)
        return int(trainer.current_epoch)

    assert on_ranks(2, run) == [1, 1]


def _children(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and f"\nPPid:\t{parent}\n" in (folder / "status").read_text():
            found.append(int(folder.name))
    return found
