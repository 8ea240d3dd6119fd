"""Text: corpora, tokenizers, packing, and each node's batches."""

from worldlm.data.blocks import BlockBatchSampler, Blocks, PoissonBatchSampler
from worldlm.data.corpora import Corpus, Mixture, SplitName, TextFiles
from worldlm.data.datamodule import CorpusDataModule
from worldlm.data.hub import HubDataset
from worldlm.data.packing import PackedCorpus, pack
from worldlm.data.standard_library import StandardLibrary
from worldlm.data.tokenizers import ByteTokenizer, FileTokenizer, Tokenizer, load_tokenizer

__all__ = [
    "BlockBatchSampler",
    "Blocks",
    "ByteTokenizer",
    "Corpus",
    "CorpusDataModule",
    "FileTokenizer",
    "HubDataset",
    "Mixture",
    "PackedCorpus",
    "PoissonBatchSampler",
    "SplitName",
    "StandardLibrary",
    "TextFiles",
    "Tokenizer",
    "load_tokenizer",
    "pack",
]
