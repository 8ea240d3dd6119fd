"""Why a fit ended before its last round, and how to go on."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from lightning.pytorch.callbacks import EarlyStopping, Timer

from worldlm.trainer import WorldTrainer
from worldlm.trainer.epoch_loop import trackers


def rounds_done(trainer: WorldTrainer) -> int:
    """Return the number of finished rounds. Unlike `current_epoch`, it counts those of a checkpoint at once."""
    return trackers(trainer.fit_loop.epoch_progress)[0].processed


def early_end(trainer: WorldTrainer) -> tuple[str, str]:
    """Return why a fit ended before its last round, and what lets it go on.

    Returns:
        The reason and the change of settings; both empty if all rounds are done.
    """
    rounds = trainer.max_epochs
    if rounds is not None and 0 <= rounds <= rounds_done(trainer):
        return "", ""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        remaining = callback.time_remaining() if isinstance(callback, Timer) else None
        if remaining is not None and remaining <= 0:
            limit = timedelta(seconds=round(callback.time_elapsed() + remaining))
            return f"max_time of {limit} is over", "a longer max_time, which counts from the run's start"
    for callback in callbacks:
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
            reason = callback.stopping_reason_message.replace("Signaling Trainer to stop.", "").strip().rstrip(".")
            return f"EarlyStopping: {reason}", "EarlyStopping left out"
    return "a callback set trainer.should_stop", ""
