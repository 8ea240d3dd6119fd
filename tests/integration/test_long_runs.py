"""Runs of many rounds: memory and files do not grow with the rounds, except for the metrics of each round."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger

from worldlm.callbacks import LastCheckpoint, Pictures, Record, Summary
from worldlm.runs.results import RESULTS

Make = Callable[..., Any]

EVENT_BYTES = 1_000
"""Allowed growth of TensorBoard's file for every node and round: some ten figures of some 70 bytes."""
RECORD_BYTES = 500
"""Allowed growth of results.json for every node and round."""


class Watch(Checkpoint):
    """Measures memory, files and time every `every` rounds, after all other callbacks."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.seen: list[dict[str, float]] = []
        self._since = time.process_time()

    def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
        if (trainer.world.round + 1) % self.every:
            return
        gc.collect()
        folder, now = Path(trainer.folder), time.process_time()
        self.seen.append(
            {
                "memory": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE"),
                "open files": len(os.listdir("/proc/self/fd")),
                "checkpoint": LastCheckpoint.path(trainer).stat().st_size,
                "record": (folder / RESULTS).stat().st_size,
                "events": sum(path.stat().st_size for path in folder.glob("events.*")),
                "seconds": (now - self._since) / self.every,
            }
        )
        self._since = time.process_time()

    def of(self, name: str) -> list[float]:
        return [measured[name] for measured in self.seen]


@pytest.fixture
def watched(star: Make, fit: Make, whole_method: Make, tmp_path: Path) -> Callable[..., Watch]:
    """Return a function that trains two leaves below a root for a number of rounds, and measures every n rounds."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("memory and open files are read from /proc")

    def run(number: int, every: int, *more: Callback) -> Watch:
        topology = star("ab")
        logger = TensorBoardLogger(tmp_path, name="", version="")
        watch = Watch(every)
        callbacks = [*whole_method(), Record(), *more, LastCheckpoint(), watch]
        fit(topology, callbacks, max_epochs=number, logger=logger, log_every_n_steps=10)
        assert len(watch.seen) == number // every
        return watch

    return run


def grown(values: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(values)]


def test_twenty_rounds(watched: Callable[..., Watch]) -> None:
    every, nodes = 4, 3
    watch = watched(20, every)
    assert set(grown(watch.of("open files"))) == {0}
    assert set(grown(watch.of("checkpoint"))) == {0}
    assert 0 < max(grown(watch.of("record"))) <= RECORD_BYTES * nodes * every
    assert 0 < max(grown(watch.of("events"))) <= EVENT_BYTES * nodes * every


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("pictures")
def test_two_thousand_rounds(watched: Callable[..., Watch]) -> None:
    watch = watched(2_000, 100, Pictures(), Summary())  # five pictures, the first after 400 rounds
    sizes = watch.of("checkpoint")
    assert max(sizes) - min(sizes) <= 512, sizes  # figures get more digits
    assert set(grown(watch.of("open files")[4:])) == {0}
    assert watch.of("record")[-1] <= RECORD_BYTES * 3 * 2_000
    assert watch.of("events")[-1] <= EVENT_BYTES * 3 * 2_000
    memory, seconds = watch.of("memory")[4:], watch.of("seconds")
    growth = min(memory[-5:]) - min(memory[:5])  # minima, because pictures take memory in some rounds only
    assert growth < 16e6, memory  # of 500 MB; the record takes a kilobyte a round
    assert sum(seconds[-5:]) < 2 * sum(seconds[1:4]) * 5 / 3, seconds
