"""Blocks of tokens, the training sequences of a model, from one packed corpus or several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from worldlm.data.packed import PackedCorpus


class Blocks(Dataset[Tensor]):
    """A packed corpus cut into blocks of one length.

    A block has seq_len + 1 tokens. By default its last token is the first of the next block, so that every token but
    the first is predicted once. Disjoint blocks share no token, so that each token is in one block, and one in
    seq_len + 1 tokens is not predicted.

    Args:
        packed: The corpus.
        seq_len: Tokens of an input sequence; a block has one more.
        disjoint: Whether blocks share no token, for example-level privacy.

    Raises:
        ValueError: If the corpus is shorter than one block.
    """

    def __init__(self, packed: PackedCorpus, seq_len: int, disjoint: bool = False) -> None:
        if packed.num_tokens <= seq_len:
            raise ValueError(f"{packed.num_tokens} tokens are fewer than a block of {seq_len} + 1 tokens")
        self.packed = packed
        self.seq_len = seq_len
        self.disjoint = disjoint
        tokens = np.asarray(packed.tokens)  # still memory-mapped, without the overhead of the memmap class
        windows = np.lib.stride_tricks.sliding_window_view(tokens, seq_len + 1)
        self.rows: NDArray[np.integer] = windows[:: seq_len + disjoint]
        """All blocks, shape [num_blocks, seq_len + 1], mapped from disk."""

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        """Return one block, int64, shape [seq_len + 1]."""
        return torch.from_numpy(self.rows[index].astype(np.int64))

    def __getitems__(self, indices: list[int]) -> Tensor:
        """Return a batch of blocks, int64, shape [len(indices), seq_len + 1]."""
        return torch.from_numpy(self.rows[indices].astype(np.int64))

    def __reduce__(self) -> tuple[object, tuple[PackedCorpus, int, bool]]:
        """Pickle the path instead of the tokens, for data workers."""
        return Blocks, (self.packed, self.seq_len, self.disjoint)

    @property
    def sizes(self) -> list[int]:
        """Number of blocks of each part; there is one part."""
        return [len(self)]

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token, to turn loss per token into bits per byte."""
        return self.packed.bytes_per_token


class MixedBlocks(Dataset[Tensor]):
    """The blocks of several packed corpora as one data set, one corpus after the other.

    For data workers, the paths of the parts are pickled instead of the tokens.

    Args:
        parts: The blocks of each corpus, at least one, all of the same length.
    """

    def __init__(self, parts: Sequence[Blocks]) -> None:
        assert len({part.seq_len for part in parts}) == 1
        self.parts = tuple(parts)
        self.seq_len = parts[0].seq_len
        self._ends = np.cumsum(self.sizes)

    def __len__(self) -> int:
        """Return the number of blocks."""
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Tensor:
        """Return one block, int64, shape [seq_len + 1]."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> Tensor:
        """Return a batch of blocks in the order of the indices, int64, shape [len(indices), seq_len + 1].

        Raises:
            IndexError: If an index is negative or too large.
        """
        blocks = np.asarray(indices, np.int64)
        if not np.all((blocks >= 0) & (blocks < len(self))):
            raise IndexError(f"there are {len(self)} blocks, not {min(indices)} to {max(indices)}")
        part_numbers = np.searchsorted(self._ends, blocks, side="right")
        rows = np.empty((len(blocks), self.seq_len + 1), np.int64)
        for number in np.unique(part_numbers).tolist():
            positions, part = np.flatnonzero(part_numbers == number), self.parts[number]
            rows[positions] = part.rows[blocks[positions] - (self._ends[number] - len(part))]
        return torch.from_numpy(rows)

    @property
    def sizes(self) -> list[int]:
        """Number of blocks of each part."""
        return [len(part) for part in self.parts]

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token of all parts, to turn loss per token into bits per byte."""
        packed = [part.packed for part in self.parts]
        return sum(corpus.num_bytes for corpus in packed) / sum(corpus.num_tokens for corpus in packed)


def join_blocks(parts: Sequence[Blocks]) -> Blocks | MixedBlocks:
    """Return the blocks of several corpora as one data set; a single corpus is returned unchanged."""
    return parts[0] if len(parts) == 1 else MixedBlocks(parts)
