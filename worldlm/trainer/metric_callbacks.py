"""Lightning's callbacks that monitor a metric: they act only in rounds that produce a new value."""

from collections.abc import Iterable, Sequence

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

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
