"""A process that is stopped is named, and one that has left is not."""

from __future__ import annotations

import threading
from queue import Queue

import pytest
from torch.distributed import HashStore

from worldlm.distributed import heartbeat
from worldlm.distributed.heartbeat import Heartbeat, Silence


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS_BETWEEN_BEATS", 0.01)
    monkeypatch.setattr(heartbeat, "MINUTES_OF_SILENCE", 0.03 / 60)  # three beats


def _three(store: HashStore) -> list[Heartbeat]:
    return [Heartbeat(store, 1, rank, 3, lambda line: None) for rank in range(3)]


def test_a_count_that_stays_the_same() -> None:
    silence = Silence(2)
    assert [silence.lasts(value) for value in (0, 0, 1, 1, 1, 1, 2)] == [False] * 5 + [True, False]


@pytest.mark.parametrize("stopped", [0, 2])
def test_a_stopped_process_is_named(stopped: int) -> None:
    processes = _three(HashStore())
    for process in processes:
        process.exchange()
    lines: list[list[str | None]] = []
    for _ in range(8):
        for rank, process in enumerate(processes):
            if rank != stopped:
                process.exchange()
        lines.append([process.look() for rank, process in enumerate(processes) if rank != stopped])
    assert lines[0] == [None, None]
    named = [
        line is not None and line.startswith(f"process {stopped} of the run has not answered") for line in lines[4]
    ]
    assert named == [True, True] if stopped == 0 else [True, False]  # process 0 watches the others


def test_a_process_that_ended_its_fit_is_not_expected() -> None:
    first, second, third = _three(HashStore())
    for process in (first, second, third):
        process.exchange()
    second.leave()
    lines = []
    for _ in range(8):
        for process in (first, third):
            process.exchange()
        lines.append(first.look())
    assert lines == [None] * 8


def test_a_stopped_store_is_noticed_though_it_blocks() -> None:
    class Stopped(HashStore):
        def add(self, key: str, amount: int) -> int:
            threading.Event().wait()
            return 0

    lines: Queue[str] = Queue()
    Heartbeat(Stopped(), 1, 1, 2, lines.put).start()
    assert lines.get(timeout=60).startswith("process 0 of the run has not answered for ")


def test_a_stopped_heartbeat_says_that_it_left() -> None:
    store = HashStore()
    process = Heartbeat(store, 1, 1, 2, lambda line: None)
    process.stop()
    process._count()
    assert store.check(["beat/1/1/left"])
