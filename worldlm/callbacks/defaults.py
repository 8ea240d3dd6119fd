"""Default callbacks of each command; a callback of the same type in the recipe replaces the default one."""

from __future__ import annotations

from lightning.pytorch import Callback

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
