"""The callbacks that a command brings along, unless the recipe lists its own of that kind."""

from __future__ import annotations

from lightning.pytorch import Callback

from worldlm.callbacks.keep_tokenizer import KeepTokenizer
from worldlm.callbacks.last_checkpoint import LastCheckpoint
from worldlm.callbacks.node_metrics import NodeMetrics
from worldlm.callbacks.node_validation import NodeValidation
from worldlm.callbacks.pictures import Pictures
from worldlm.callbacks.progress import RoundProgress
from worldlm.callbacks.record import Record
from worldlm.callbacks.same_text import SameText
from worldlm.callbacks.samples import Samples
from worldlm.callbacks.start_anew import StartAnew
from worldlm.callbacks.stop_signal import StopSignal
from worldlm.callbacks.summary import Summary
from worldlm.callbacks.traffic import Traffic

ALWAYS: dict[str, tuple[type[Callback], ...]] = {
    "fit": (
        StartAnew,
        NodeMetrics,
        Samples,
        Traffic,
        Record,
        Pictures,
        KeepTokenizer,
        SameText,
        StopSignal,
        LastCheckpoint,
        RoundProgress,
        Summary,
    ),
    "validate": (NodeValidation,),
    "prepare": (),
}
"""By command."""
