"""Default callbacks of each command. They give way to callbacks in the recipe and to options of the Trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint, ProgressBar

from worldlm.callbacks.data_consistency_check import DataConsistencyCheck
from worldlm.callbacks.divergence_recovery import DivergenceRecovery
from worldlm.callbacks.keep_tokenizer import KeepTokenizer
from worldlm.callbacks.last_checkpoint import LastCheckpoint
from worldlm.callbacks.stop_signal import StopSignal
from worldlm.monitoring.node_metrics import NodeMetrics
from worldlm.monitoring.node_validation import NodeValidation
from worldlm.monitoring.pictures import Pictures
from worldlm.monitoring.progress import RoundProgress
from worldlm.monitoring.record import Record
from worldlm.monitoring.samples import Samples
from worldlm.monitoring.summary import Summary
from worldlm.monitoring.traffic import Traffic

DEFAULT_CALLBACKS: dict[str, tuple[type[Callback], ...]] = {
    "fit": (
        DivergenceRecovery,
        NodeMetrics,
        Samples,
        Traffic,
        Record,
        Pictures,
        KeepTokenizer,
        DataConsistencyCheck,
        StopSignal,
        LastCheckpoint,
        RoundProgress,
        Summary,
    ),
    "validate": (NodeValidation,),
    "prepare": (),
}
"""By command."""


def with_defaults(command: str, callbacks: Sequence[Callback], options: Mapping[str, Any]) -> list[Callback]:
    """Add a command's default callbacks to those of a recipe.

    A default is left out if the recipe has a callback of its type, or another progress bar in its place, or if
    `enable_progress_bar` or `enable_checkpointing` excludes it.

    Args:
        command: `fit`, `validate` or `prepare`.
        callbacks: The callbacks of the recipe. Only `fit` shows their progress bar.
        options: Options of the Trainer.
    """
    kept = [callback for callback in callbacks if command == "fit" or not isinstance(callback, ProgressBar)]
    has_bar = any(isinstance(callback, ProgressBar) for callback in kept)
    excluded: list[type[Callback]] = []
    if has_bar or options.get("enable_progress_bar") is False:
        excluded.append(ProgressBar)
    if options.get("enable_checkpointing") is False:
        excluded.append(Checkpoint)
    defaults = (kind for kind in DEFAULT_CALLBACKS[command] if not issubclass(kind, tuple(excluded)))
    return [*kept, *(kind() for kind in defaults if not any(isinstance(callback, kind) for callback in kept))]
