"""The conversations of a node as rows of one length, which never cut a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from worldlm.data.packed import PackedCorpus
from worldlm.data.poisson_samplers import Unit

IGNORED = -100
"""The label of a token that is not to be predicted, as in transformers."""


class ConversationRows(Dataset[dict[str, Tensor]]):
    """Whole conversations in rows of `seq_len` tokens, with padding at the end.

    A row takes conversations in the order of the corpus as long as the next one fits (next-fit). For example-level
    privacy of documents or persons, a row is one conversation. A conversation of more than `seq_len` tokens is in no
    row.

    A batch is a dict with the names of transformers, whose tensors have the shape [batch, seq_len]:

    - `input_ids`: the tokens, and 0 as padding.
    - `labels`: the same tokens where they are to be predicted, else -100. They are **not shifted**: the label at
      position t is the token at position t, which a model predicts from the tokens before it, as in transformers.
    - `position_ids`: the position of a token in its conversation. They restart at 0 in each conversation, so that
      attention keeps the conversations apart. Padding has 0.

    The tensors are int64. With example-level privacy they are int32, which asks for the mean of the losses of the rows
    instead of that of all tokens.

    Args:
        parts: The corpora of the node. A person with conversations in several of them is one unit.
        seq_len: Tokens of a row.
        unit: The unit of example-level privacy; None if there is none.

    Raises:
        ValueError: If no conversation of a corpus fits into a row; or if `unit` is `person`, and a corpus does not name
            the person of each conversation.
    """

    def __init__(self, parts: Sequence[PackedCorpus], seq_len: int, unit: Unit | None = None) -> None:
        self.parts = tuple(parts)
        self.seq_len = seq_len
        self.unit = unit
        self._dtype = np.int64 if unit is None else np.int32
        found = [_find(part, seq_len) for part in parts]
        self._part_numbers = np.repeat(np.arange(len(parts)), [len(begins) for begins, *_ in found])
        self._begins, self._ends, persons, targets = (np.concatenate(columns) for columns in zip(*found, strict=True))
        self.num_conversations = len(self._begins)
        """Conversations that are in a row."""
        self.num_too_long = sum(part.num_documents for part in parts) - self.num_conversations
        """Conversations that are left out because they have more than `seq_len` tokens."""
        self.num_targets = int(targets.sum())
        """Tokens to predict in all rows."""
        self.unit_starts: NDArray[np.int64] | None = None
        """For documents and persons: the first row of each unit, and the number of rows, shape [units + 1]."""
        if unit in ("document", "person"):
            self._first = np.arange(self.num_conversations + 1)
            self.unit_starts = self._by_person(persons) if unit == "person" else self._first
            self.sizes = [self.num_conversations]
        else:
            lengths = np.split(self._ends - self._begins, np.cumsum([len(begins) for begins, *_ in found])[:-1])
            sizes = [np.array(next_fit(part.tolist(), seq_len), np.int64) for part in lengths]
            self._first = np.concatenate([[0], np.cumsum(np.concatenate(sizes))])  # conversation of each row
            self.sizes = [len(part) for part in sizes]
            """Number of rows of each part; for documents and persons of all parts, which are sampled as one."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._first) - 1

    @property
    def padding(self) -> float:
        """Fraction of the rows that is padding."""
        return 1 - float((self._ends - self._begins).sum()) / (len(self) * self.seq_len)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of the answers per predicted token, to turn loss per token into bits per byte."""
        return sum(part.num_bytes for part in self.parts) / sum(part.num_targets or 0 for part in self.parts)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one row, each tensor of shape [seq_len]."""
        return {name: tensor[0] for name, tensor in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a batch of rows, each tensor of shape [len(indices), seq_len]; the class describes it.

        Raises:
            IndexError: If an index is negative or too large.
        """
        if indices and not 0 <= min(indices) <= max(indices) < len(self):
            raise IndexError(f"there are {len(self)} rows, not {min(indices)} to {max(indices)}")
        shape = (len(indices), self.seq_len)
        input_ids, labels, position_ids = (np.full(shape, fill, self._dtype) for fill in (0, IGNORED, 0))
        for row, index in enumerate(indices):
            at = 0
            for number in range(self._first[index], self._first[index + 1]):
                part = self.parts[self._part_numbers[number]]
                tokens, targets = (self._read(array, number) for array in (part.tokens, part.targets))
                place = slice(at, at + len(tokens))
                input_ids[row, place] = tokens
                labels[row, place] = np.where(targets, tokens, IGNORED)
                position_ids[row, place] = np.arange(len(tokens))
                at += len(tokens)
        arrays = {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def __reduce__(self) -> tuple[object, tuple[Sequence[PackedCorpus], int, Unit | None]]:
        """Pickle the paths instead of the tokens, for data workers."""
        return ConversationRows, (self.parts, self.seq_len, self.unit)

    def _read(self, array: NDArray[np.integer] | None, number: int) -> NDArray[np.int64]:
        assert array is not None
        return np.asarray(array[self._begins[number] : self._ends[number]], np.int64)

    def _by_person(self, persons: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Order the conversations by person, and return the first of each person, and their number."""
        if not persons.all():
            raise ValueError("unit is person, but the corpus does not set person, the field that names them")
        order = np.argsort(persons, kind="stable")
        self._part_numbers, self._begins, self._ends = (
            column[order] for column in (self._part_numbers, self._begins, self._ends)
        )
        is_first = np.diff(persons[order], prepend=np.uint64(0)) != 0
        return np.append(np.flatnonzero(is_first), len(persons))


def next_fit(lengths: Iterable[int], size: int) -> list[int]:
    """Pack items into rows in their order; a new row begins where an item does not fit.

    Args:
        lengths: Lengths of the items, each at most `size`.
        size: Length of a row.

    Returns:
        The number of items in each row.
    """
    counts: list[int] = []
    used = size
    for length in lengths:
        if used + length > size:
            counts.append(0)
            used = 0
        counts[-1] += 1
        used += length
    return counts


def _find(
    part: PackedCorpus, seq_len: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64], NDArray[np.int64]]:
    """Return where the conversations that fit into a row begin and end, their persons and their numbers of targets."""
    assert part.documents is not None
    assert part.targets is not None
    ends = part.documents["end"].astype(np.int64)
    begins = np.concatenate([[0], ends[:-1]])
    fits = ends - begins <= seq_len
    if not fits.any():
        raise ValueError(f"all {len(ends)} conversations have more tokens than max_seq_len, {seq_len}")
    num_targets = np.add.reduceat(np.asarray(part.targets), begins, dtype=np.int64)
    return begins[fits], ends[fits], part.documents["person"][fits], num_targets[fits]
