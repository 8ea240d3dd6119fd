"""A process that stops, or is gone, while others wait for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from worldlm.callbacks import Averaging, LastCheckpoint
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
