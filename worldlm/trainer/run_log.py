"""Writes metrics and texts to the loggers of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import lightning.pytorch as pl

from worldlm.rounds.log import LogSink

Entry: TypeAlias = tuple[str, str | dict[str, float], int]
"""Tag of a text, or "" for scalars; the content; the step of the entry."""


class RunLog(LogSink):
    """Writes to every logger of a trainer. Each value has its own step: a node's local steps, or the round.

    Lightning's `self.log` is not used. It gathers and reduces on every batch, which is the largest overhead of a small
    model. It also has one step for the whole run, while the metrics of a node belong to the node's own step.

    Only process 0 has loggers. Entries of other processes are pending until the end of the round.

    Args:
        trainer: Has the loggers.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer
        self.pending: list[Entry] = []
        """Entries of this process since the end of the last round, if it is not process 0."""

    def scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Log scalars, by tag."""
        self._add(("", {name: float(value) for name, value in scalars.items()}, step))

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """Log a Markdown text."""
        self._add((tag, text, step))

    def _add(self, entry: Entry) -> None:
        if self._trainer.is_global_zero:
            self.write([entry])
        else:
            self.pending.append(entry)

    def write(self, entries: Iterable[Entry]) -> None:
        """Write entries to the loggers. Only loggers that can show texts (TensorBoard) receive them."""
        for tag, content, step in entries:
            for logger in self._trainer.loggers:
                experiment: Any = getattr(logger, "experiment", None)
                if isinstance(content, dict):
                    logger.log_metrics(content, step=step)
                elif hasattr(experiment, "add_text"):
                    experiment.add_text(tag, content, step)

    def tensorboard_writers(self) -> list[Any]:
        """Return the writers of the run's TensorBoard loggers. Processes other than 0 have none."""
        trainer = self._trainer
        writers = [getattr(logger, "experiment", None) for logger in trainer.loggers] if trainer.is_global_zero else []
        return [writer for writer in writers if hasattr(writer, "add_image")]
