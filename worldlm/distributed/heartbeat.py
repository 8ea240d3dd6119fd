"""Notices a process that is stopped or hangs: it keeps its connections, but no longer counts upwards in the store.

Process 0 watches all others, and all others watch process 0. A process that died is noticed earlier, by its
connections.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch._C._distributed_c10d import Store

SECONDS_BETWEEN_BEATS = 10.0
MINUTES_OF_SILENCE = 10.0
"""A process that does not count for so long is lost."""


class Silence:
    """How often a count was the same. A pause of the process that looks does not matter, as its clock would.

    Args:
        looks: The number of looks after which the other process is silent.
    """

    def __init__(self, looks: float) -> None:
        self._most, self._looks, self._value = looks, 0, -1

    def lasts(self, value: int) -> bool:
        """Return whether the other process is silent, given its count now."""
        self._looks = self._looks + 1 if value == self._value else 0
        self._value = value
        return self._looks > self._most


class Heartbeat:
    """Counts upwards in the store while a fit runs, and watches whether the others do.

    Args:
        store: The store, used by this object alone.
        fit: The number of the fit, the same in all processes.
        rank: The number of this process.
        num_ranks: The number of processes.
        on_lost: Called, in a thread, with a line that names a silent process.
    """

    def __init__(self, store: Store, fit: int, rank: int, num_ranks: int, on_lost: Callable[[str], Any]) -> None:
        self._store, self._fit, self._rank, self._on_lost = store, fit, rank, on_lost
        watched = range(1, num_ranks) if rank == 0 else (0,)
        looks = 60 * MINUTES_OF_SILENCE / SECONDS_BETWEEN_BEATS
        self._silences = {other: Silence(looks) for other in watched}
        self._counts = dict.fromkeys(watched, 0)
        self._no_answer, self._num_answers = Silence(looks), 0
        self._ended = threading.Event()

    def start(self) -> None:
        """Begin to count and to watch."""
        for target in (self._count, self._watch):  # a stopped host of the store would block the first
            threading.Thread(target=target, daemon=True, name="heartbeat").start()

    def stop(self) -> None:
        """Stop both. The others no longer expect this process to count."""
        self._ended.set()

    def exchange(self) -> None:
        """Count once, and read the counts of the watched processes."""
        self._store.add(self._key(self._rank), 1)
        self._counts = {other: self._store.add(self._key(other), 0) for other in self._counts}
        self._num_answers += 1

    def leave(self) -> None:
        """Tell the others that this process ends its fit."""
        self._store.set(f"{self._key(self._rank)}/left", "")

    def look(self) -> str | None:
        """Return a line about the first process that is silent; None if there is none. Call it once for each beat."""
        if self._no_answer.lasts(self._num_answers):
            return _line(0)  # or the agent of torchrun, or the network to it
        for other, silence in self._silences.items():
            if silence.lasts(self._counts[other]) and not self._store.check([f"{self._key(other)}/left"]):
                return _line(other)
        return None

    def _count(self) -> None:
        try:
            while not self._ended.is_set():
                self.exchange()
                self._ended.wait(SECONDS_BETWEEN_BEATS)
            self.leave()
        except RuntimeError:  # the store is gone, with the process that hosted it: the next message fails
            return

    def _watch(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_BEATS):
            if message := self.look():
                self._on_lost(message)
                return

    def _key(self, rank: int) -> str:
        return f"beat/{self._fit}/{rank}"


def _line(rank: int) -> str:
    return (
        f"process {rank} of the run has not answered for {MINUTES_OF_SILENCE:g} minutes: it is stopped or hangs, or "
        "cannot be reached; end all processes, and resume with --ckpt_path last"
    )
