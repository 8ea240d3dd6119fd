"""Blocks of tokens, and the samplers that say which blocks a node sees next.

A sampler is a pure function of (seed, node, position): neither the order in which nodes are
visited, nor a restart, nor the number of data workers changes what a node trains on.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from worldlm.data.packing import PackedCorpus
from worldlm.federation.seeds import derive_seed


class Blocks(Dataset[Tensor]):
    """A packed corpus cut into blocks of one length.

    Block i is the tokens from i * seq_len to (i + 1) * seq_len inclusive: its last token is the
    first of the next block, so that every token but the first is predicted once.

    Args:
        packed: The corpus.
        seq_len: Tokens that a model reads at once; a block holds one more.

    Raises:
        ValueError: If the corpus is shorter than one block.
    """

    def __init__(self, packed: PackedCorpus, seq_len: int) -> None:
        if packed.num_tokens <= seq_len:
            raise ValueError(f"{packed.num_tokens} tokens are fewer than a block of {seq_len} + 1 tokens")
        self.packed = packed
        self.seq_len = seq_len
        tokens = np.asarray(packed.tokens)  # without the cost of the memmap class, still mapped
        self._blocks = np.lib.stride_tricks.sliding_window_view(tokens, seq_len + 1)[::seq_len]

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self._blocks)

    def __getitem__(self, index: int) -> Tensor:
        """Return one block, int64, shape [seq_len + 1]."""
        return torch.from_numpy(self._blocks[index].astype(np.int64))

    def __getitems__(self, indices: list[int]) -> Tensor:
        """Return a batch of blocks, int64, shape [len(indices), seq_len + 1]."""
        return torch.from_numpy(self._blocks[indices].astype(np.int64))

    def __reduce__(self) -> tuple[object, tuple[PackedCorpus, int]]:
        """Travel to a data worker as a path, not as tokens."""
        return Blocks, (self.packed, self.seq_len)


class BlockBatchSampler(Sampler[list[int]]):
    """Batches of blocks for one node, pass after pass over its text, each in a new random order.

    The loop sets `start` and `length` before each visit to the node.

    Args:
        num_blocks: Blocks of the node's text, at least 1.
        batch_size: Blocks of a batch, at least 1. A batch may reach into the next pass.
        seed: The run's seed.
        node: The node's name.
    """

    def __init__(self, num_blocks: int, batch_size: int, seed: int, node: str) -> None:
        assert num_blocks >= 1
        assert batch_size >= 1
        self.num_blocks = num_blocks
        self.batch_size = batch_size
        self.seed = seed
        self.node = node
        self.start = 0
        """Batches that the node has drawn before this visit."""
        self.length = -(-num_blocks // batch_size)
        """Batches of this visit; at first one pass over the text."""
        self._order = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        """Return the number of batches of this visit."""
        return self.length

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of this visit as lists of block indices."""
        for step in range(self.start, self.start + self.length):
            yield self._draw(step * self.batch_size, (step + 1) * self.batch_size)

    def _draw(self, begin: int, end: int) -> list[int]:
        """Return the blocks at positions begin to end of the endless sequence of passes."""
        indices: list[int] = []
        while begin < end:
            number, offset = divmod(begin, self.num_blocks)
            taken = self._pass(number)[offset : offset + end - begin]
            indices += taken.tolist()
            begin += len(taken)
        return indices

    def _pass(self, number: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        """Return the order of blocks in a pass, shape [num_blocks]; the last one is kept."""
        if self._order[0] != number:
            rng = np.random.default_rng(derive_seed(self.seed, self.node, "pass", number))
            self._order = (number, rng.permutation(self.num_blocks))
        return self._order[1]


class PoissonBatchSampler(Sampler[list[int]]):
    """Batches in which every block is taken with the same probability, as DP-SGD's accounts need.

    A batch has `batch_size` blocks on average and may be empty. The loop sets `start` and `length`
    before each visit to the node.

    Args:
        num_blocks: Blocks of the node's text.
        batch_size: Expected blocks of a batch, from 1 to `num_blocks`.
        seed: The run's seed.
        node: The node's name.

    Raises:
        ValueError: If `batch_size` is more than `num_blocks`.
    """

    def __init__(self, num_blocks: int, batch_size: int, seed: int, node: str) -> None:
        assert num_blocks >= 1
        assert batch_size >= 1
        if batch_size > num_blocks:
            raise ValueError(
                f"batch_size is {batch_size}; with Poisson sampling it must not be more than the "
                f"{num_blocks} blocks of the text"
            )
        self.num_blocks = num_blocks
        self.batch_size = batch_size
        self.sample_rate = batch_size / num_blocks
        """Probability of a block to be in a batch."""
        self.seed = seed
        self.node = node
        self.start = 0
        """Batches that the node has drawn before this visit."""
        self.length = -(-num_blocks // batch_size)
        """Batches of this visit; at first as many as would make one pass over the text."""

    def __len__(self) -> int:
        """Return the number of batches of this visit."""
        return self.length

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of this visit as lists of distinct block indices."""
        for step in range(self.start, self.start + self.length):
            rng = np.random.default_rng(derive_seed(self.seed, self.node, "poisson", step))
            # One coin for each block, drawn as the number of heads and then which they are.
            size = rng.binomial(self.num_blocks, self.sample_rate)
            yield rng.choice(self.num_blocks, size, replace=False, shuffle=False).tolist()
