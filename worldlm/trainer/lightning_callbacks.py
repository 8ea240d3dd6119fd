"""Lightning's own callbacks that a world rejects, because they assume a single module that trains without pause."""

from __future__ import annotations

from collections.abc import Iterable

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)

_OTHER_WEIGHTS = (
    "averages the weights of the live module, which holds another node at every fit: use an outer optimizer"
)

_REJECTED: dict[type[Callback], str] = {
    StochasticWeightAveraging: _OTHER_WEIGHTS,
    WeightAveraging: _OTHER_WEIGHTS,
    BaseFinetuning: "changes one optimizer, but every node has its own: set requires_grad in the module's __init__",
    GradientAccumulationScheduler: (
        "acts when a round starts, so that a run that resumes within a round would differ: use accumulate_grad_batches"
    ),
    ModelPruning: "renames the parameters of the live module, which are those of all nodes: prune an exported model",
    OnExceptionCheckpoint: "cannot save while nodes exchange messages: use worldlm.callbacks.LastCheckpoint",
    LearningRateFinder: "trains before the first round: compare learning rates with worldlm compare",
    BatchSizeFinder: "trains before the first round: set data.batch_size, or batch_size of a node",
}
"""Callbacks that cannot work in a world, and why."""


def check_supported(callbacks: Iterable[Callback]) -> None:
    """Check that none of Lightning's callbacks is listed that cannot work in a world.

    Raises:
        ValueError: Names the callback, and what to use instead.
    """
    for callback in callbacks:
        for kind, reason in _REJECTED.items():
            if isinstance(callback, kind):
                raise ValueError(f"{type(callback).__name__} {reason}")
