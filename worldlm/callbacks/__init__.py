"""The callbacks that a recipe lists: the parts of a federated method, and those that record and show a run."""

from worldlm.callbacks.alternating_adapters import AlternatingAdapters
from worldlm.callbacks.attention import AttentionAggregation
from worldlm.callbacks.averaging import Averaging
from worldlm.callbacks.clustered_averaging import ClusteredAveraging
from worldlm.callbacks.compression import Compression
from worldlm.callbacks.data_consistency_check import DataConsistencyCheck
from worldlm.callbacks.ditto import Ditto
from worldlm.callbacks.divergence_recovery import DivergenceRecovery
from worldlm.callbacks.example_privacy import ExamplePrivacy
from worldlm.callbacks.fedamp import FedAMP
from worldlm.callbacks.keep_tokenizer import KeepTokenizer
from worldlm.callbacks.last_checkpoint import LastCheckpoint
from worldlm.callbacks.proximal import Proximal
from worldlm.callbacks.residual_exchange import ResidualExchange
from worldlm.callbacks.robust_averaging import RobustAveraging
from worldlm.callbacks.stop_signal import StopSignal
from worldlm.callbacks.token_rows import TokenRows
from worldlm.callbacks.update_privacy import UpdatePrivacy
from worldlm.monitoring.node_metrics import NodeMetrics
from worldlm.monitoring.node_validation import NodeValidation
from worldlm.monitoring.pictures import Pictures
from worldlm.monitoring.progress import RoundProgress
from worldlm.monitoring.record import Record
from worldlm.monitoring.samples import Samples
from worldlm.monitoring.summary import Summary
from worldlm.monitoring.traffic import Traffic

__all__ = [
    "AlternatingAdapters",
    "AttentionAggregation",
    "Averaging",
    "ClusteredAveraging",
    "Compression",
    "DataConsistencyCheck",
    "Ditto",
    "DivergenceRecovery",
    "ExamplePrivacy",
    "FedAMP",
    "KeepTokenizer",
    "LastCheckpoint",
    "NodeMetrics",
    "NodeValidation",
    "Pictures",
    "Proximal",
    "Record",
    "ResidualExchange",
    "RobustAveraging",
    "RoundProgress",
    "Samples",
    "StopSignal",
    "Summary",
    "TokenRows",
    "Traffic",
    "UpdatePrivacy",
]

RENAMED = {"SameText": "DataConsistencyCheck", "StartAnew": "DivergenceRecovery"}
"""Present names of callbacks, by the names in former versions."""


def __getattr__(name: str) -> object:
    """Name the class that took the place of one of a former version.

    Raises:
        AttributeError: For every name, because the module has none of them.
    """
    present = f"; it was renamed: import {RENAMED[name]}" if name in RENAMED else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{present}")
