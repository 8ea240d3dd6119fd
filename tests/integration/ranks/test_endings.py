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
import torch
from lightning.pytorch import Callback

from worldlm.callbacks import Averaging, DataConsistencyCheck, LastCheckpoint, StopSignal
from worldlm.distributed import joining
from worldlm.distributed.transport import RankLost

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
            fit(star("abc"), [Averaging(), LastCheckpoint(), Ending(1, _fail)])
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
            return str(error).partition("\n")[0]
        return "no error"

    host = socket.gethostname()
    expected = (
        f"process 1 on {host} was not started as process 0 on {host} was: seed is 1 there and 0 at process 0 on {host}"
    )
    assert on_ranks(2, run) == [expected] * 2


def test_text_that_is_other_elsewhere_ends_the_run(
    star: Make, fit: Make, on_ranks: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def facts(trainer: Any) -> dict[str, Any]:
        return {"a": {"tokens_crc32": ["01"]}, "b": {"tokens_crc32": [f"0{trainer.global_rank}"]}}

    monkeypatch.setattr("worldlm.callbacks.data_consistency_check.data_facts", facts)

    def run() -> str:
        try:
            fit(star("ab"), [Averaging(), DataConsistencyCheck()])
        except ValueError as error:
            return str(error).partition("\n")[0]
        return "no error"

    first, second = (f"process {rank} on {socket.gethostname()}" for rank in (0, 1))
    differs = f"the text of b is [['01'], None] there and [['00'], None] at {first}"
    assert on_ranks(2, run) == [f"{second} was not started as {first} was: {differs}"] * 2


def test_a_process_that_is_never_started(
    star: Make, fit: Make, on_ranks: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "MINUTES_TO_JOIN", 2 / 60)

    def run() -> str:
        if os.environ["RANK"] == "1":
            return "elsewhere"
        try:
            fit(star("ab"), [Averaging()])
        except RankLost as error:
            return str(error)
        return "no error"

    message, _ = on_ranks(2, run)
    assert message.startswith("process 1 of the run did not join within 0.0333333 minutes (1 of 2 did): ")
    assert "start all of them, and check that each can reach the others and 127.0.0.1" in message


@pytest.mark.slow
def test_a_fit_may_take_longer_than_joining(star: Make, fit: Make, on_ranks: Make, monkeypatch: Any) -> None:
    monkeypatch.setattr(joining, "MINUTES_TO_JOIN", 1.5 / 60)

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


@pytest.mark.parametrize("rank", [0, 1])
def test_sigusr1_at_one_process_stops_all_at_the_rounds_end(
    rank: int, star: Make, fit: Make, on_ranks: Make, tmp_path: Path
) -> None:
    """As a scheduler sends it before the time is over; what was done is in the checkpoint."""

    def run() -> list[int]:
        ask = Ending(rank, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        callbacks = [Averaging(), LastCheckpoint(every_n_rounds=100), StopSignal(), ask]
        trainer = fit(star("abc"), callbacks, max_epochs=4)
        return [int(trainer.received_sigterm), int(trainer.world.round)]

    assert on_ranks(2, run) == [[0, 2], [0, 2]]  # before the third
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == 2


def test_sigusr1_stops_one_process_between_two_steps(star: Make, fit: Make, tmp_path: Path) -> None:
    ask, before = Ending(0, lambda: os.kill(os.getpid(), signal.SIGUSR1)), signal.getsignal(signal.SIGUSR1)
    callbacks = [Averaging(), LastCheckpoint(), StopSignal(), ask]
    trainer = fit(star("abc"), callbacks, max_epochs=4)
    assert trainer.received_sigterm
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["loops"]["fit_loop"]["state_dict"]
    assert (saved["active"], saved["fitting"]) == ("a", True)
    signal.signal(signal.SIGUSR1, before)
    fit(star("a"), [Averaging(), StopSignal()])
    assert signal.getsignal(signal.SIGUSR1) is before


def _children(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and f"\nPPid:\t{parent}\n" in (folder / "status").read_text():
            found.append(int(folder.name))
    return found
