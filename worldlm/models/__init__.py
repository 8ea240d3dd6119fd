"""The language model, its partition into backbone, key and value layers, and its LightningModule."""

from worldlm.models.generation import NotFiniteError, generate
from worldlm.models.module import Evaluation, LanguageModule, OptimizerSettings, warmup_cosine
from worldlm.models.mpt import MPT, Architecture, alibi_slopes
from worldlm.models.partition import Split, partition, parts_of

__all__ = [
    "MPT",
    "Architecture",
    "Evaluation",
    "LanguageModule",
    "NotFiniteError",
    "OptimizerSettings",
    "Split",
    "alibi_slopes",
    "generate",
    "partition",
    "parts_of",
    "warmup_cosine",
]
