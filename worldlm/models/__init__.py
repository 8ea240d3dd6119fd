"""The language model, its partition into backbone, key and value layers, and its LightningModule."""

from worldlm.models.architecture import Architecture
from worldlm.models.generation import NotFiniteError, generate
from worldlm.models.module import Evaluation, LanguageModule, architecture_of
from worldlm.models.mpt import MPT, alibi_slopes
from worldlm.models.optimizer import OptimizerSettings, warmup_cosine
from worldlm.models.partition import Split, partition, parts_of
from worldlm.models.transformer import Transformer

__all__ = [
    "MPT",
    "Architecture",
    "Evaluation",
    "LanguageModule",
    "NotFiniteError",
    "OptimizerSettings",
    "Split",
    "Transformer",
    "alibi_slopes",
    "architecture_of",
    "generate",
    "partition",
    "parts_of",
    "warmup_cosine",
]
