"""The progress of packing: bars on a terminal, a line per minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from worldlm.data.corpora import SplitName
from worldlm.data.packed import Counts

_SECONDS_BETWEEN_LINES = 60.0


class Display:
    """Shows the progress of packing corpora on standard error."""

    def __init__(self) -> None:
        self._started: dict[str, tuple[float, int]] = {}
        self._tasks: dict[str, TaskID] = {}
        self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("Packing {task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            transient=True,
            disable=not sys.stderr.isatty(),
        )

    def __enter__(self) -> Self:
        """Show the bars."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove the bars."""
        self._progress.stop()

    def start(self, name: str, counts: Mapping[SplitName, Counts]) -> None:
        """Add the bar of a corpus, which may be partly packed; do nothing if it has a bar."""
        if name in self._tasks:
            return
        self._started[name] = (time.monotonic(), _num_tokens(counts))
        self._tasks[name] = self._progress.add_task(name, total=None, status="")

    def advance(self, name: str, counts: Mapping[SplitName, Counts], done: float | None) -> None:
        """Show how much of a corpus is packed, and its fraction, from 0 to 1, if it is known."""
        status = f"{_num_tokens(counts) / 1e6:.1f} M tokens, {self._rate(name, counts) / 1e6:.2f} M/s"
        total = None if done is None else 1.0
        self._progress.update(self._tasks[name], completed=done or 0.0, total=total, status=status)
        if self._progress.disable and time.monotonic() > self._next_line:
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
            share = "" if done is None else f", {done:.0%}"
            print(f"Packing {name}: {status}{share}", file=sys.stderr)

    def finish(self, name: str, counts: Mapping[SplitName, Counts]) -> None:
        """Print the size of a packed corpus."""
        seconds = time.monotonic() - self._started[name][0]
        parts = [
            f"{split} {size.num_documents} documents, {size.num_bytes / 1e6:.2f} MB, "
            f"{size.num_tokens / 1e6:.2f} M tokens"
            for split, size in counts.items()
        ]
        if left_out := show_left_out(counts):
            parts.append(f"left out: {left_out}")
        rate = f"{seconds:.1f} s, {self._rate(name, counts) / 1e6:.2f} M tokens/s"
        self._progress.update(self._tasks[name], visible=False)
        self._progress.console.print(f"Packed {name}: {'; '.join(parts)} ({rate})", highlight=False, soft_wrap=True)

    def _rate(self, name: str, counts: Mapping[SplitName, Counts]) -> float:
        started, before = self._started[name]
        return (_num_tokens(counts) - before) / max(time.monotonic() - started, 1e-3)


def _num_tokens(counts: Mapping[SplitName, Counts]) -> int:
    return sum(size.num_tokens for size in counts.values())


def show_left_out(counts: Mapping[SplitName, Counts]) -> str:
    """Return how many records of a corpus gave no document, such as `2 empty, 1 null`; empty if there are none."""
    total = sum((Counter(size.left_out) for size in counts.values()), Counter())
    return ", ".join(f"{number} {reason}" for reason, number in total.items())
