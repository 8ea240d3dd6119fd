"""The data module: one stream of batches for each data node of the federation."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning import LightningDataModule
from torch.utils.data import BatchSampler, DataLoader

from worldlm.data.conversation_rows import ConversationRows
from worldlm.data.corpora import Corpus, SourceInterrupted, SplitName, naming
from worldlm.data.cutting import AnyBlocks, check_conversations, cut, title_of, unit_of
from worldlm.data.declared import find_wholes, split_corpora
from worldlm.data.mixture import Mixture
from worldlm.data.packed import PackedCorpus
from worldlm.data.poisson_samplers import make_sampler
from worldlm.data.preparing import Request, open_prepared, prepare
from worldlm.data.samplers import NodeSampler, spread
from worldlm.data.tokenizers import Tokenizer, load_tokenizer
from worldlm.data.trained_tokenizer import TrainedBPE
from worldlm.topology import ALL
from worldlm.topology.errors import join_names, suggest
from worldlm.topology.reader import MAX_MISTAKES

if TYPE_CHECKING:
    from worldlm.topology import Node


class CorpusDataModule(LightningDataModule):
    """Text for the data nodes of a federation.

    A node names its corpus in the topology. Nodes with the same corpus share its text on disk, and each draws its own
    batches from it. A batch is int64, shape [batch_size, max_seq_len + 1]; of conversations it is a dict, see
    `worldlm.data.ConversationRows`.

    Args:
        corpora: The corpora by the names that the topology's nodes use; a `Partition` defines one for each shard.
            Unless the recipe defines `all`, it is a mixture of all corpora that are not mixtures.
        tokenizer: `bytes`, the path of a `tokenizer.json`, the name of a tokenizer on the Hugging Face Hub, or a
            `TrainedBPE` to train on all corpora of the recipe.
        batch_size: Blocks per batch, unless the settings of a node set another number.
        root: Base folder of the corpora's relative paths.
        local: Corpus name -> files to read instead of the corpus: paths or glob patterns, relative to `root`, with
            `{split}` for `train` and `validation`. Without `{split}`, documents are held out by a hash of their text.
            The limits of the corpus apply, its `where` does not.
        cache_dir: Folder of the packed corpora.
        num_workers: Processes per node that read batches; 0 reads in the training process.

    Raises:
        ValueError: If a setting is out of range or the tokenizer cannot be loaded.
    """

    tokenizer: Tokenizer
    """The tokenizer of all corpora; a trained one is set by `prepare_data` or `setup`."""
    bytes_per_token: dict[str, float]
    """Data node -> bytes per token of its validation text; set by `setup`."""
    blocks: dict[SplitName, dict[str, AnyBlocks]]
    """Split -> data node -> its blocks; set by `setup`."""

    def __init__(
        self,
        corpora: dict[str, Corpus],
        tokenizer: str | TrainedBPE = "bytes",
        batch_size: int = 16,
        root: str = ".",
        local: dict[str, str] | None = None,
        cache_dir: str = "~/.cache/worldlm",
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        self.mixtures = {name: corpus for name, corpus in corpora.items() if isinstance(corpus, Mixture)}
        plain = {name: corpus for name, corpus in corpora.items() if name not in self.mixtures}
        self.wholes = find_wholes(plain, local or {}, Path(os.path.expanduser(root)))
        self.corpora = split_corpora(plain, self.wholes)
        self._mixes_all = ALL not in corpora
        if self._mixes_all:
            self.mixtures[ALL] = Mixture()
        if isinstance(tokenizer, str):
            self.tokenizer = load_tokenizer(tokenizer)
        self._trained = None if isinstance(tokenizer, str) else tokenizer
        self.trains_tokenizer = self._trained is not None
        self.batch_size = batch_size
        self.cache_dir = cache_dir
        self.num_workers = num_workers
        self.blocks = {"train": {}, "validation": {}}
        self.bytes_per_token = {}

    @property
    def has_conversations(self) -> bool:
        """Whether the text of a node is conversations; known after `setup`."""
        return any(isinstance(blocks, ConversationRows) for blocks in self.blocks["train"].values())

    def prepare_data(self) -> None:
        """Pack the corpora that the topology uses, in one process per machine.

        Raises:
            ValueError: If a node's corpus is unknown, cannot be read, or is empty; the message
                names the node and the corpus. Or if the model cannot be trained on conversations.
        """
        architecture = self._architecture()  # a mistake there would be found only after all text is packed
        requests = self._requests()
        self._warn_of_unused()
        try:
            self._load_tokenizer({request.name: request.title for request in requests})
            check_conversations(requests, self.tokenizer, architecture)
            prepare(requests, self.tokenizer, self.cache_dir)
        except SourceInterrupted as error:
            raise SourceInterrupted(f"{error}; or read your own files: --data.local.NAME 'FILES'") from error

    def setup(self, stage: str | None = None) -> None:
        """Open the packed corpora and cut them into blocks of the model's length.

        Args:
            stage: Lightning's name of the stage; all stages need the same data.

        Raises:
            ValueError: As `prepare_data`, or if a corpus is shorter than a block, the tokenizer has more tokens than
                the model, or the model does not say its sizes.
        """
        architecture = self._architecture()
        self._load_tokenizer()
        if self.tokenizer.vocab_size > architecture.vocab_size:
            raise ValueError(
                f"the tokenizer has {self.tokenizer.vocab_size} tokens, the model's vocab_size is "
                f"{architecture.vocab_size}; it must be at least as large"
            )
        packed = self._open()
        for name, node in self._data_nodes().items():
            for split, blocks in self.blocks.items():
                parts = {member: packed[member][split] for member in self._members(node)}
                blocks[name] = cut(node, split, parts, architecture.max_seq_len)
            self.bytes_per_token[name] = self.blocks["validation"][name].bytes_per_token

    def train_dataloader(self) -> dict[str, DataLoader[Any]]:
        """Return the loader of each data node's batches by node name.

        The `batch_sampler` of a loader is a `NodeSampler`. For a node with example-level privacy it draws every block
        with the same probability. The training loop sets where each fit starts and ends.

        Raises:
            ValueError: If a node's batch size does not fit its text.
        """
        return {name: self._train_loader(node) for name, node in self._data_nodes().items()}

    def val_dataloader(self) -> dict[str, DataLoader[Any]]:
        """Return the loader of each data node's held-out blocks by node name: all once, interleaved for a mixture."""
        loaders = {}
        for name, node in self._data_nodes().items():
            blocks = self.blocks["validation"][name]
            sampler = BatchSampler(spread(blocks.sizes), self._size(node), drop_last=False)
            loaders[name] = self._loader(blocks, sampler)
        return loaders

    def _train_loader(self, node: Node) -> DataLoader[Any]:
        blocks = self.blocks["train"][node.name]
        weights = self.mixtures[node.corpus].weights if node.corpus in self.mixtures else None
        with naming(title_of([node], "train")):
            sampler = make_sampler(
                blocks.sizes,
                self._size(node),
                self._trainer().run_settings.seed,
                node.name,
                weights=weights,
                key=self._trainer().noise_key if unit_of(node) else None,
                unit=unit_of(node) or "block",
                unit_starts=getattr(blocks, "unit_starts", None),
            )
        sampler.length = node.settings.num_local_steps or sampler.length
        return self._loader(blocks, sampler)

    def _loader(self, blocks: AnyBlocks, sampler: NodeSampler | BatchSampler) -> DataLoader[Any]:
        return DataLoader(
            blocks,
            batch_sampler=sampler,
            collate_fn=_identity,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator(),  # otherwise creating the iterator would draw from the global generator
        )

    def _size(self, node: Node) -> int:
        return node.settings.batch_size or self.batch_size

    def _open(self) -> dict[str, dict[SplitName, PackedCorpus]]:
        requests = self._requests()
        try:
            return {request.name: open_prepared(request, self.tokenizer, self.cache_dir) for request in requests}
        except ValueError:
            return prepare(requests, self.tokenizer, self.cache_dir)

    def _load_tokenizer(self, titles: Mapping[str, str] | None = None) -> None:
        if self._trained is not None:
            self.tokenizer = self._trained.load(self.wholes, self.cache_dir, titles)

    def _requests(self) -> list[Request]:
        """Return the corpora that the topology's nodes use, each once.

        Raises:
            ValueError: If a node's corpus is unknown.
        """
        known = [*self.corpora, *self.mixtures]
        nodes = self._data_nodes().values()
        unknown: dict[str, list[Node]] = {}
        for node in nodes:
            if node.corpus not in self.corpora and node.corpus not in self.mixtures:
                unknown.setdefault(str(node.corpus), []).append(node)
        if unknown:
            raise ValueError("\n".join(_unknown_corpora(unknown, known)))
        users: dict[str, list[Node]] = {}
        for node in nodes:
            for name in self._members(node):
                users.setdefault(name, []).append(node)
        return [Request(name, self.corpora[name], title_of(nodes)) for name, nodes in users.items()]

    def _warn_of_unused(self) -> None:
        """Warn of corpora that no node uses, except as part of an `all` that the recipe does not define."""
        nodes = list(self._data_nodes().values())
        explicit = [node for node in nodes if node.corpus != ALL or not self._mixes_all] or nodes
        used = {name for node in explicit for name in self._members(node)}
        if unused := join_names(name for name in self.corpora if name not in used):
            no_node = "no node" if len(explicit) == len(nodes) else f"no node except that of {ALL!r}"
            warnings.warn(f"{no_node} uses the corpora {unused}", stacklevel=3)

    def _members(self, node: Node) -> list[str]:
        """Return the names of the corpora that make up a node's text."""
        assert node.corpus is not None
        mixture = self.mixtures.get(node.corpus)
        if mixture is None:
            return [node.corpus]
        with naming(title_of([node])):
            return mixture.members({**self.corpora, **self.mixtures})

    def _data_nodes(self) -> dict[str, Node]:
        return {node.name: node for node in self._trainer().data_nodes}

    def _architecture(self) -> Any:
        """Return the sizes that the model states."""
        module = self._trainer().lightning_module
        architecture = getattr(module, "architecture", None)
        if not (hasattr(architecture, "vocab_size") and hasattr(architecture, "max_seq_len")):
            raise ValueError(
                f"CorpusDataModule cuts text into blocks that fit the model, but {type(module).__name__} does not say "
                "its sizes: give it an attribute `architecture` with `vocab_size` and `max_seq_len`"
            )
        return architecture

    def _trainer(self) -> Any:
        if getattr(self.trainer, "topology", None) is None:
            raise ValueError("CorpusDataModule needs a trainer that has a topology")
        return self.trainer


def _unknown_corpora(unknown: Mapping[str, Sequence[Node]], known: Sequence[str]) -> Iterator[str]:
    """Yield an error for each unknown corpus that some nodes have, with the place of the first node."""
    listed = join_names(known, 30) or "none"
    for corpus, nodes in islice(unknown.items(), MAX_MISTAKES):
        place = f"{nodes[0].source}: " if nodes[0].source else ""
        names = join_names(repr(node.name) for node in nodes)
        yield f"{place}node {names}: unknown corpus {corpus!r}; known are {listed}{suggest(corpus, known)}"
    if len(unknown) > MAX_MISTAKES:
        yield f"and {len(unknown) - MAX_MISTAKES} more unknown corpora"


def _identity(batch: Any) -> Any:
    """Return a batch unchanged: its blocks are stacked already."""
    return batch
