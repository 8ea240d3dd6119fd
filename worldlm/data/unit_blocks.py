"""The text of a node cut into blocks that each belong to one document or person, for example-level privacy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from worldlm.data.packed import PackedCorpus
from worldlm.data.poisson_samplers import Unit

PADDING = -1
"""Stands after the end of a block that is shorter than the others."""


class UnitBlocks(Dataset[Tensor]):
    """Training text in blocks of one document each, grouped by the unit that is protected.

    A block has up to `seq_len` tokens to predict, and the token before them. This is a token of the same document, or
    the end of text before its first token, which is the same in every text. So the blocks of a unit have no token of
    another unit, and each token of the text, except perhaps the first of all, is predicted in one block.

    Args:
        parts: The corpora of the node. A person with text in several of them is one unit.
        seq_len: Tokens of an input sequence.
        unit: `document` or `person`.

    Raises:
        ValueError: If `unit` is `person`, and a corpus does not name the person of each document.
    """

    def __init__(self, parts: Sequence[PackedCorpus], seq_len: int, unit: Unit) -> None:
        self.parts = tuple(parts)
        self.seq_len = seq_len
        self.unit = unit
        self._tokens = [np.asarray(part.tokens) for part in parts]
        spans = [_spans(part, number) for number, part in enumerate(parts)]
        part_numbers, begins, ends, persons = (np.concatenate(columns) for columns in zip(*spans, strict=True))
        if unit == "person":
            if not persons.all():
                raise ValueError("unit is person, but the corpus does not set person, the field that names them")
            order = np.argsort(persons, kind="stable")
            part_numbers, begins, ends = part_numbers[order], begins[order], ends[order]
            is_first = np.diff(persons[order], prepend=np.uint64(0)) != 0
        else:
            is_first = np.ones(len(begins), bool)
        self._part_numbers, self._begins, self._ends = part_numbers, begins, ends
        num_blocks = np.maximum(-(-(ends - begins - 1) // seq_len), 1)
        self._first_blocks = np.concatenate([[0], np.cumsum(num_blocks)])  # of each document, and the total
        self.unit_starts: NDArray[np.int64] = np.append(self._first_blocks[:-1][is_first], self._first_blocks[-1])
        """The first block of each unit, and the number of blocks; shape [units + 1]."""

    def __len__(self) -> int:
        """Return the number of blocks."""
        return int(self._first_blocks[-1])

    @property
    def num_units(self) -> int:
        """Number of documents or persons."""
        return len(self.unit_starts) - 1

    @property
    def sizes(self) -> list[int]:
        """Number of blocks of each part; they are sampled as one."""
        return [len(self)]

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token, to turn loss per token into bits per byte."""
        return sum(part.num_bytes for part in self.parts) / sum(part.num_tokens for part in self.parts)

    def __getitem__(self, index: int) -> Tensor:
        """Return one block; see `__getitems__`."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        """Return a batch of blocks, int32, shape [len(indices), seq_len + 1], with `PADDING` after shorter ones.

        Raises:
            IndexError: If an index is negative or too large.
        """
        if indices and not 0 <= min(indices) <= max(indices) < len(self):
            raise IndexError(f"there are {len(self)} blocks, not {min(indices)} to {max(indices)}")
        rows = np.full((len(indices), self.seq_len + 1), PADDING, np.int32)
        for row, index in zip(rows, indices, strict=True):
            document = int(np.searchsorted(self._first_blocks, index, side="right")) - 1
            begin = int(self._begins[document]) + (index - int(self._first_blocks[document])) * self.seq_len
            end = min(begin + self.seq_len + 1, int(self._ends[document]))
            row[: end - begin] = self._tokens[self._part_numbers[document]][begin:end]
        return torch.from_numpy(rows)

    def __reduce__(self) -> tuple[object, tuple[Sequence[PackedCorpus], int, Unit]]:
        """Pickle the paths instead of the tokens, for data workers."""
        return UnitBlocks, (self.parts, self.seq_len, self.unit)


def _spans(part: PackedCorpus, number: int) -> tuple[NDArray[np.int64], ...]:
    """Return for each document the number of its part, where it begins and ends, and its person; shape [documents]."""
    assert part.documents is not None
    ends = part.documents["end"].astype(np.int64)
    begins = np.concatenate([[0], ends[:-1]])
    begins[1:] -= 1  # the end of text before it
    return np.full(len(ends), number), begins, ends, part.documents["person"]
