"""Blocks of tokens: what a model reads at once, of one packed corpus or of several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from worldlm.data.packing import PackedCorpus


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
        self.rows: NDArray[np.integer] = np.lib.stride_tricks.sliding_window_view(tokens, seq_len + 1)[::seq_len]
        """All blocks, shape [num_blocks, seq_len + 1], as they lie on disk."""

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        """Return one block, int64, shape [seq_len + 1]."""
        return torch.from_numpy(self.rows[index].astype(np.int64))

    def __getitems__(self, indices: list[int]) -> Tensor:
        """Return a batch of blocks, int64, shape [len(indices), seq_len + 1]."""
        return torch.from_numpy(self.rows[indices].astype(np.int64))

    def __reduce__(self) -> tuple[object, tuple[PackedCorpus, int]]:
        """Travel to a data worker as a path, not as tokens."""
        return Blocks, (self.packed, self.seq_len)

    @property
    def sizes(self) -> list[int]:
        """Blocks of each part: there is one."""
        return [len(self)]

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text for each token, to turn loss per token into bits per byte."""
        return self.packed.bytes_per_token


class MixedBlocks(Dataset[Tensor]):
    """The blocks of several packed corpora as one data set, one corpus after the other.

    It travels to a data worker as the paths of its parts.

    Args:
        parts: The blocks of each corpus, at least one, all of one length.
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
        """Return a batch of blocks in the order asked for, int64, shape [len(indices), seq_len + 1].

        Raises:
            IndexError: If an index is negative or too large.
        """
        wanted = np.asarray(indices, np.int64)
        if not np.all((wanted >= 0) & (wanted < len(self))):
            raise IndexError(f"there are {len(self)} blocks, not {min(indices)} to {max(indices)}")
        owners = np.searchsorted(self._ends, wanted, side="right")
        rows = np.empty((len(wanted), self.seq_len + 1), np.int64)
        for number in np.unique(owners).tolist():
            places, part = np.flatnonzero(owners == number), self.parts[number]
            rows[places] = part.rows[wanted[places] - (self._ends[number] - len(part))]
        return torch.from_numpy(rows)

    @property
    def sizes(self) -> list[int]:
        """Blocks of each part."""
        return [len(part) for part in self.parts]

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text for each token of all parts, to turn loss per token into bits per byte."""
        packed = [part.packed for part in self.parts]
        return sum(one.num_bytes for one in packed) / sum(one.num_tokens for one in packed)


def join_blocks(parts: Sequence[Blocks]) -> Blocks | MixedBlocks:
    """Return the blocks of several corpora as one data set; those of one corpus as they are."""
    return parts[0] if len(parts) == 1 else MixedBlocks(parts)
