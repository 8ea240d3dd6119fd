"""Lightning's callbacks that follow a metric, told when there is a new one."""

from collections.abc import Iterable, Sequence

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

MetricCallback = EarlyStopping | ModelCheckpoint


def find_metric_callbacks(callbacks: Iterable[Callback]) -> list[MetricCallback]:
    """Return the callbacks that would wait for Lightning's validation loop, which a world does not run.

    A ModelCheckpoint with `save_on_train_epoch_end=True` saves every round, whatever is evaluated, and is none.
    """
    return [
        callback
        for callback in callbacks
        if isinstance(callback, EarlyStopping)
        or (isinstance(callback, ModelCheckpoint) and callback._save_on_train_epoch_end is not True)
    ]


def set_metric_callbacks(followers: Sequence[MetricCallback], follow: bool) -> None:
    """Let the callbacks look at their metric at the end of this round, or pass this round over."""
    for callback in followers:
        if isinstance(callback, EarlyStopping):
            callback._check_on_train_epoch_end = follow
        else:
            callback._save_on_train_epoch_end = follow
