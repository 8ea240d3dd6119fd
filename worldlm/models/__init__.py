"""The language model, its partition into backbone, key and value layers, and its LightningModule."""

from worldlm.models.adapter_folder import merge_adapters, write_adapter
from worldlm.models.architecture import Architecture
from worldlm.models.evaluation import Evaluation
from worldlm.models.generation import NotFiniteError, generate
from worldlm.models.lora import Lora, lora_of
from worldlm.models.module import LanguageModule, architecture_of
from worldlm.models.mpt import MPT, alibi_slopes
from worldlm.models.optimizer import OptimizerSettings, warmup_cosine
from worldlm.models.partition import Split, partition, parts_of
from worldlm.models.transformer import Transformer

__all__ = [
    "MPT",
    "Architecture",
    "Evaluation",
    "LanguageModule",
    "Lora",
    "NotFiniteError",
    "OptimizerSettings",
    "Split",
    "Transformer",
    "alibi_slopes",
    "architecture_of",
    "generate",
    "lora_of",
    "merge_adapters",
    "partition",
    "parts_of",
    "warmup_cosine",
    "write_adapter",
]
