"""Writing figures to a run's loggers."""

from collections.abc import Mapping
from typing import Any

from worldlm.loop import WorldTrainer


def log_scalars(trainer: WorldTrainer, scalars: Mapping[str, float], step: int) -> None:
    """Write scalars to every logger, with a step of their own: a node's steps, or the round.

    Lightning's `self.log` gathers and reduces on every batch, which is the largest overhead of a small model, and
    knows one step for the whole run; figures of a node belong to the node's own step.
    """
    for logger in trainer.loggers:
        logger.log_metrics(dict(scalars), step=step)


def log_text(trainer: WorldTrainer, tag: str, text: str, step: int = 0) -> None:
    """Write a text to the loggers that can show one (TensorBoard)."""
    for logger in trainer.loggers:
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(experiment, "add_text"):
            experiment.add_text(tag, text, step)
