"""The pieces of a federated method: a method is a list of these in a recipe."""

from worldlm.callbacks.attention import AttentionAggregation
from worldlm.callbacks.averaging import Averaging
from worldlm.callbacks.compression import Compression
from worldlm.callbacks.example_privacy import ExamplePrivacy
from worldlm.callbacks.fedamp import FedAMP
from worldlm.callbacks.keep_tokenizer import KeepTokenizer
from worldlm.callbacks.last_checkpoint import LastCheckpoint
from worldlm.callbacks.node_metrics import NodeMetrics
from worldlm.callbacks.node_validation import NodeValidation
from worldlm.callbacks.pictures import Pictures
from worldlm.callbacks.progress import RoundProgress
from worldlm.callbacks.proximal import Proximal
from worldlm.callbacks.record import Record
from worldlm.callbacks.residual_exchange import ResidualExchange
from worldlm.callbacks.robust_averaging import RobustAveraging
from worldlm.callbacks.same_text import SameText
from worldlm.callbacks.samples import Samples
from worldlm.callbacks.start_anew import StartAnew
from worldlm.callbacks.stop_signal import StopSignal
from worldlm.callbacks.summary import Summary
from worldlm.callbacks.token_rows import TokenRows
from worldlm.callbacks.traffic import Traffic
from worldlm.callbacks.update_privacy import UpdatePrivacy

__all__ = [
    "AttentionAggregation",
    "Averaging",
    "Compression",
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
    "SameText",
    "Samples",
    "StartAnew",
    "StopSignal",
    "Summary",
    "TokenRows",
    "Traffic",
    "UpdatePrivacy",
]
