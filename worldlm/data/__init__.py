"""Text: corpora, tokenizers, packing, and the batches of each node."""

from worldlm.data.blocks import Blocks, MixedBlocks, join_blocks
from worldlm.data.conversation_rows import ConversationRows
from worldlm.data.conversations import Conversations
from worldlm.data.corpora import Corpus, Limits, SourceInterrupted, SplitName
from worldlm.data.datamodule import CorpusDataModule
from worldlm.data.files import TextFiles
from worldlm.data.hub import HubDataset
from worldlm.data.mixture import Mixture
from worldlm.data.packed import PackedCorpus
from worldlm.data.partition import Partition
from worldlm.data.poisson_samplers import PoissonBatchSampler, UnitBatchSampler
from worldlm.data.preparing import Request, prepare
from worldlm.data.samplers import BlockBatchSampler, MixtureBatchSampler, NodeSampler
from worldlm.data.standard_library import StandardLibrary
from worldlm.data.texts import Texts
from worldlm.data.tokenizers import ByteTokenizer, FileTokenizer, Tokenizer, load_tokenizer
from worldlm.data.trained_tokenizer import TrainedBPE
from worldlm.data.unit_blocks import UnitBlocks

__all__ = [
    "BlockBatchSampler",
    "Blocks",
    "ByteTokenizer",
    "ConversationRows",
    "Conversations",
    "Corpus",
    "CorpusDataModule",
    "FileTokenizer",
    "HubDataset",
    "Limits",
    "MixedBlocks",
    "Mixture",
    "MixtureBatchSampler",
    "NodeSampler",
    "PackedCorpus",
    "Partition",
    "PoissonBatchSampler",
    "Request",
    "SourceInterrupted",
    "SplitName",
    "StandardLibrary",
    "TextFiles",
    "Texts",
    "Tokenizer",
    "TrainedBPE",
    "UnitBatchSampler",
    "UnitBlocks",
    "join_blocks",
    "load_tokenizer",
    "prepare",
]
