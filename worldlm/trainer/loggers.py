"""Writing figures to a run's loggers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from worldlm.trainer.world_trainer import WorldTrainer

Told: TypeAlias = tuple[str, str | dict[str, float], int]
"""Tag of a text, or "" for scalars; what is told; at which step."""


def log_scalars(trainer: WorldTrainer, scalars: Mapping[str, float], step: int) -> None:
    """Write scalars to every logger, with a step of their own: a node's steps, or the round.

    Lightning's `self.log` gathers and reduces on every batch, which is the largest overhead of a small model, and
    knows one step for the whole run; figures of a node belong to the node's own step. Only process 0 has loggers: what
    a node elsewhere has to tell is written at the end of the round.
    """
    _tell(trainer, ("", {name: float(value) for name, value in scalars.items()}, step))


def log_text(trainer: WorldTrainer, tag: str, text: str, step: int = 0) -> None:
    """Write a text to the loggers that can show one (TensorBoard); see `log_scalars`."""
    _tell(trainer, (tag, text, step))


def boards(trainer: WorldTrainer) -> list[Any]:
    """Return the writers of the run's TensorBoard loggers; none but in process 0."""
    writers = [getattr(logger, "experiment", None) for logger in trainer.loggers] if trainer.is_global_zero else []
    return [writer for writer in writers if hasattr(writer, "add_image")]


def _tell(trainer: WorldTrainer, told: Told) -> None:
    if trainer.is_global_zero:
        write(trainer, [told])
    else:
        trainer.fit_loop.told.append(told)


def write(trainer: WorldTrainer, told: Iterable[Told]) -> None:
    """Write what was told to the loggers."""
    for tag, content, step in told:
        for logger in trainer.loggers:
            experiment: Any = getattr(logger, "experiment", None)
            if isinstance(content, dict):
                logger.log_metrics(content, step=step)
            elif hasattr(experiment, "add_text"):
                experiment.add_text(tag, content, step)
