"""Lightning's callbacks that monitor a metric: they act only in rounds that produce a new value."""

from collections.abc import Iterable, Sequence

import lightning.pytorch as pl
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint

from worldlm.topology.errors import join_names, suggest
from worldlm.trainer.callback import FederationCallback

MetricCallback = EarlyStopping | ModelCheckpoint


def find_metric_callbacks(callbacks: Iterable[Callback]) -> list[MetricCallback]:
    """Return the callbacks that would wait for Lightning's validation loop, which a world does not run.

    A ModelCheckpoint with `save_on_train_epoch_end=True` is left out: it saves every round, evaluated or not.
    """
    return [
        callback
        for callback in callbacks
        if isinstance(callback, EarlyStopping)
        or (isinstance(callback, ModelCheckpoint) and callback._save_on_train_epoch_end is not True)
    ]


def set_metric_callbacks(callbacks: Sequence[MetricCallback], active: bool) -> None:
    """Make the callbacks check their metric at the end of this round, or skip this round."""
    for callback in callbacks:
        if isinstance(callback, EarlyStopping):
            callback._check_on_train_epoch_end = active
        else:
            callback._save_on_train_epoch_end = active


def check_monitors(trainer: pl.Trainer) -> None:
    """Check before the first round that the metrics that callbacks monitor will exist.

    Only the code of WorldLM and Lightning is known to log no others. With a module or a callback of your own, Lightning
    looks for the metric at the end of the first round.

    Args:
        trainer: Has the callbacks, and the module.

    Raises:
        ValueError: Names the callback, its metric, and the metrics that there are.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    names = [
        name
        for callback in callbacks
        if isinstance(callback, FederationCallback)
        for name in callback.metric_names(trainer)
    ]
    packages = {type(part).__module__.partition(".")[0] for part in (trainer.lightning_module, *callbacks)}
    can_be_others = bool(packages - {"worldlm", "lightning"})
    can_be_others |= any(isinstance(callback, LearningRateMonitor) for callback in callbacks)
    for callback in callbacks:
        if not isinstance(callback, EarlyStopping | ModelCheckpoint) or callback.monitor is None:
            continue
        if callback.monitor in names:
            if isinstance(callback, EarlyStopping):
                callback.strict = False  # a node that misses the first rounds has no value until it takes part
        elif not can_be_others and getattr(callback, "strict", True):
            there_are = f"there are {join_names(names, 4)}" if names else "nodes are not evaluated"
            raise ValueError(
                f"{type(callback).__name__} monitors {callback.monitor!r}, which nothing logs: {there_are}"
                f"{suggest(callback.monitor, names)}"
            )
