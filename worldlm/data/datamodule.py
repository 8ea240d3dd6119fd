"""The data module: one stream of batches for each data node of the federation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from worldlm.data.blocks import BlockBatchSampler, Blocks, PoissonBatchSampler
from worldlm.data.corpora import Corpus, SplitName
from worldlm.data.packing import PackedCorpus, pack
from worldlm.data.tokenizers import Tokenizer, load_tokenizer
from worldlm.topology.lines import suggest

if TYPE_CHECKING:
    from worldlm.topology import Node, Topology


class CorpusDataModule(LightningDataModule):
    """Text for the data nodes of a federation.

    A node names its corpus in the topology. Nodes of one corpus share its text on disk, and each
    draws its own batches of it. A batch is int64, shape [batch_size, max_seq_len + 1].

    Args:
        corpora: The corpora by the names that the topology's nodes use.
        tokenizer: `bytes`, or the path of a `tokenizer.json`.
        batch_size: Blocks of a batch, where a node's settings say nothing else.
        root: Folder that the corpora's relative paths start from.
        cache_dir: Folder of the packed corpora.
        num_workers: Processes that read batches, for each node; 0 reads in the training process.

    Raises:
        ValueError: If a setting is out of range or the tokenizer cannot be loaded.
    """

    tokenizer: Tokenizer
    """The tokenizer of all corpora."""
    bytes_per_token: dict[str, float]
    """Bytes for each token of a data node's validation text, by node name; known after `setup`."""
    blocks: dict[SplitName, dict[str, Blocks]]
    """Blocks of each split by node name; known after `setup`."""

    def __init__(
        self,
        corpora: dict[str, Corpus],
        tokenizer: str = "bytes",
        batch_size: int = 16,
        root: str = ".",
        cache_dir: str = "~/.cache/worldlm",
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        self.corpora = {name: corpus.under(Path(root).expanduser()) for name, corpus in corpora.items()}
        self.tokenizer = load_tokenizer(tokenizer)
        self.batch_size = batch_size
        self.cache_dir = cache_dir
        self.num_workers = num_workers
        self.blocks = {"train": {}, "validation": {}}
        self.bytes_per_token = {}

    def prepare_data(self) -> None:
        """Pack the corpora that the topology uses, in one process of each machine.

        Raises:
            ValueError: If a node's corpus is unknown, cannot be read, or is empty; the message
                names node and corpus.
        """
        self._check_corpora()
        for node in self._data_nodes().values():
            self._pack(node, "train")
            self._pack(node, "validation")

    def setup(self, stage: str | None = None) -> None:
        """Open the packed corpora and cut them into blocks of the model's length.

        Args:
            stage: Lightning's name of what is about to run; all of them need the same.

        Raises:
            ValueError: As `prepare_data`, or if a corpus is shorter than a block, or the tokenizer
                has more tokens than the model.
        """
        architecture = self._trainer().lightning_module.architecture
        if self.tokenizer.vocab_size > architecture.vocab_size:
            raise ValueError(
                f"the tokenizer has {self.tokenizer.vocab_size} tokens, the model's vocab_size is "
                f"{architecture.vocab_size}; it must be at least as large"
            )
        for name, node in self._data_nodes().items():
            for split, blocks in self.blocks.items():
                packed = self._pack(node, split)
                with _naming(node, split):
                    blocks[name] = Blocks(packed, architecture.max_seq_len)
            self.bytes_per_token[name] = packed.bytes_per_token

    def train_dataloader(self) -> dict[str, DataLoader[Tensor]]:
        """Return each data node's batches by node name.

        The loader's `batch_sampler` is a `BlockBatchSampler`, or a `PoissonBatchSampler` where the
        node's settings ask for privacy of examples; the loop says where a visit starts and ends.

        Raises:
            ValueError: If a node's batch size does not fit its text.
        """
        return {name: self._train_loader(node) for name, node in self._data_nodes().items()}

    def val_dataloader(self) -> dict[str, DataLoader[Tensor]]:
        """Return each data node's held-out text by node name: all blocks once, in order."""
        loaders = {}
        for name, node in self._data_nodes().items():
            blocks = self.blocks["validation"][name]
            sampler = BatchSampler(SequentialSampler(blocks), self._size(node), drop_last=False)
            loaders[name] = self._loader(blocks, sampler)
        return loaders

    def _train_loader(self, node: Node) -> DataLoader[Tensor]:
        blocks = self.blocks["train"][node.name]
        private = node.settings.example_privacy is not None
        kind = PoissonBatchSampler if private else BlockBatchSampler
        with _naming(node, "train"):
            sampler = kind(len(blocks), self._size(node), self._trainer().seed, node.name)
        sampler.length = node.settings.num_local_steps or sampler.length
        return self._loader(blocks, sampler)

    def _loader(
        self, blocks: Blocks, sampler: BlockBatchSampler | PoissonBatchSampler | BatchSampler
    ) -> DataLoader[Tensor]:
        return DataLoader(
            blocks,
            batch_sampler=sampler,
            collate_fn=_identity,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator(),  # or starting to read would draw from the global one
        )

    def _size(self, node: Node) -> int:
        return node.settings.batch_size or self.batch_size

    def _pack(self, node: Node, split: SplitName) -> PackedCorpus:
        assert node.corpus is not None
        with _naming(node, split):
            corpus = self.corpora[node.corpus]
            return pack(corpus, split, self.tokenizer, self.cache_dir, node.corpus)

    def _check_corpora(self) -> None:
        """Compare the names of corpora that are used with those that are known."""
        nodes = self._data_nodes().values()
        errors = [
            f"node {node.name!r}: unknown corpus {node.corpus!r}; known are "
            f"{', '.join(self.corpora) or 'none'}{suggest(str(node.corpus), self.corpora)}"
            for node in nodes
            if node.corpus not in self.corpora
        ]
        if errors:
            raise ValueError("\n".join(errors))
        unused = [name for name in self.corpora if name not in {node.corpus for node in nodes}]
        if unused:
            warnings.warn(f"no node uses the corpora {', '.join(unused)}", stacklevel=2)

    def _data_nodes(self) -> dict[str, Node]:
        topology: Topology = self._trainer().topology
        return {node.name: node for node in topology.data_nodes}

    def _trainer(self) -> Any:
        if getattr(self.trainer, "topology", None) is None:
            raise ValueError("CorpusDataModule needs a trainer that has a topology")
        return self.trainer


@contextmanager
def _naming(node: Node, split: SplitName) -> Iterator[None]:
    """Say whose text it is that something is wrong with."""
    try:
        yield
    except ValueError as error:
        place = f"node {node.name!r}, corpus {node.corpus!r} ({split})"
        raise ValueError(f"{place}: {error}") from error


def _identity(batch: Any) -> Any:
    """Keep a batch as it is: blocks are stacked already."""
    return batch
