"""Runs the validation of a module that has its own metrics, for one node at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.combined_loader import CombinedLoader


class _Chain:
    """The first batches of several loaders, one after the other."""

    def __init__(self, loaders: Mapping[str, Iterable[Any]], limits: Mapping[str, float]) -> None:
        self._parts = {id(loader): (loader, limits[name]) for name, loader in loaders.items()}  # a shared one once

    def __iter__(self) -> Iterator[Any]:
        for loader, limit in self._parts.values():
            yield from loader if limit == float("inf") else islice(loader, int(limit))


def run_validation(
    trainer: pl.Trainer, val_loop: Any, loaders: Mapping[str, Iterable[Any]], limits: Mapping[str, float]
) -> dict[str, float]:
    """Run the module's `validation_step`, and all hooks of Lightning's validation, with the live weights.

    Args:
        trainer: Lightning's trainer, in training. Its loggers receive nothing.
        val_loop: Its validation loop.
        loaders: Batches of held-out data, by data node.
        limits: Number of batches to read, by data node.

    Returns:
        The metrics that the module logged, as means over all batches, by name.
    """
    combined, max_batches, loggers = val_loop._combined_loader, val_loop._max_batches, trainer.loggers
    val_loop._combined_loader = CombinedLoader(_Chain(loaders, limits), "sequential")
    val_loop._max_batches, trainer.loggers = [float("inf")], [DummyLogger()] if loggers else []
    trainer.validating = True
    try:
        logged = val_loop.run()
    finally:
        trainer.training = True
        val_loop._combined_loader, val_loop._max_batches, trainer.loggers = combined, max_batches, loggers
    return {name: float(value) for metrics in logged for name, value in metrics.items()}
