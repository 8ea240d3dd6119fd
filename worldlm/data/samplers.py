"""Samplers: the order of the blocks that a node trains on.

A sampler is a pure function of (seed, node, position). Neither the order in which nodes train, nor a restart, nor the
number of data workers changes the batches of a node.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from worldlm.federation.seeds import derive_seed

WINDOW = 10_000
"""Number of draws in which a weighted mixture takes exactly its quota from each part."""


class NodeSampler(Sampler[list[int]], ABC):
    """Batches of blocks for a node. The training loop sets `start` and `length` before each fit.

    Args:
        num_blocks: Number of blocks of the node's text, at least 1.
        batch_size: Blocks per batch, at least 1.
        node: The node's name.
    """

    def __init__(self, num_blocks: int, batch_size: int, node: str) -> None:
        assert num_blocks >= 1
        assert batch_size >= 1
        self.num_blocks = num_blocks
        self.batch_size = batch_size
        self.node = node
        self.start = 0
        """Number of batches that the node drew in earlier fits."""
        self.length = -(-num_blocks // batch_size)
        """Number of batches of this fit; initially one pass over the text."""

    def __len__(self) -> int:
        """Return the number of batches of this fit."""
        return self.length

    def __iter__(self) -> Iterator[list[int]]:
        """Return the batches of the fit that `start` and `length` describe."""
        return (self.batch(step) for step in range(self.start, self.start + self.length))

    @abstractmethod
    def batch(self, step: int) -> list[int]:
        """Return the blocks of a batch; batches are numbered from the first of the node."""


class BlockBatchSampler(NodeSampler):
    """Repeated passes over a node's text, each in a new random order.

    A batch may extend into the next pass.

    Args:
        num_blocks: Number of blocks of the node's text, at least 1.
        batch_size: Blocks per batch, at least 1.
        seed: The run's seed.
        node: The node's name.
    """

    def __init__(self, num_blocks: int, batch_size: int, seed: int, node: str) -> None:
        super().__init__(num_blocks, batch_size, node)
        self._passes = _Passes(num_blocks, seed, node)

    def batch(self, step: int) -> list[int]:
        """Return the blocks of a batch by its number; see `NodeSampler.batch`."""
        return self._passes.take(step * self.batch_size, (step + 1) * self.batch_size)


class MixtureBatchSampler(NodeSampler):
    """Blocks of several texts in given proportions.

    Each window of `WINDOW` draws takes exactly its quota from each part, in a new random order. Each part has its own
    endless sequence of passes, as if it were read alone. Therefore, of the first n draws, part k has n * quota / WINDOW
    with a deviation of at most quota * (1 - quota / WINDOW).

    Args:
        sizes: Number of blocks of each part, at least 1; blocks are numbered consecutively over the parts.
        weights: Share of each part, positive numbers of which only the ratios count.
        batch_size: Blocks per batch, at least 1.
        seed: The run's seed.
        node: The node's name.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], batch_size: int, seed: int, node: str) -> None:
        assert len(sizes) == len(weights)
        super().__init__(sum(sizes), batch_size, node)
        self.seed = seed
        self.quotas = quotas(weights)
        """Number of draws from each part per window."""
        self._firsts = list(accumulate(sizes[:-1], initial=0))
        self._passes = [_Passes(size, seed, node, number) for number, size in enumerate(sizes)]
        self._window = (-1, np.empty(0, np.uint16))

    def batch(self, step: int) -> list[int]:
        """Return the blocks of a batch by its number; see `NodeSampler.batch`."""
        begin, end = step * self.batch_size, (step + 1) * self.batch_size
        blocks: list[int] = []
        while begin < end:
            number, offset = divmod(begin, WINDOW)
            blocks += self._draw(number, offset, offset + end - begin)
            begin = (number + 1) * WINDOW
        return blocks

    def _draw(self, number: int, begin: int, end: int) -> list[int]:
        """Return the blocks at positions begin to end of a window, or to the end of the window."""
        order = self._order(number)
        parts = order[begin:end]
        blocks = np.empty(len(parts), np.int64)
        for part in np.unique(parts).tolist():
            positions = np.flatnonzero(parts == part)
            first = number * self.quotas[part] + np.count_nonzero(order[:begin] == part)
            blocks[positions] = self._passes[part].take(first, first + len(positions))
            blocks[positions] += self._firsts[part]
        return blocks.tolist()

    def _order(self, number: int) -> NDArray[np.uint16]:
        """Return the part of each draw in a window, shape [WINDOW]; the last result is cached."""
        if self._window[0] != number:
            rng = np.random.default_rng(derive_seed(self.seed, self.node, "mixture", number))
            order = np.repeat(np.arange(len(self.quotas), dtype=np.uint16), self.quotas)
            rng.shuffle(order)
            self._window = (number, order)
        return self._window[1]


def quotas(weights: Sequence[float]) -> list[int]:
    """Divide the draws of a window among parts by largest remainder; each part gets at least one.

    Args:
        weights: Positive numbers, at most `WINDOW` of them.

    Returns:
        Numbers that sum to `WINDOW`.
    """
    assert len(weights) <= WINDOW
    total = sum(map(Fraction, weights), Fraction())  # exact for weights of any magnitude
    ideals = [WINDOW * Fraction(weight) / total for weight in weights]
    shares = [max(1, math.floor(ideal)) for ideal in ideals]
    while missing := WINDOW - sum(shares):
        lacks = [ideal - share for ideal, share in zip(ideals, shares, strict=True)]
        if missing > 0:
            shares[lacks.index(max(lacks))] += 1
        else:  # the minimum of one draw gave small parts too many; take them from the others
            shares[min((lack, part) for part, lack in enumerate(lacks) if shares[part] > 1)[1]] -= 1
    return shares


def spread(sizes: Sequence[int]) -> list[int]:
    """Order the blocks of several parts, each once, so that every prefix has each part in proportion to its size.

    Args:
        sizes: Number of blocks of each part.

    Returns:
        All blocks; the blocks of a part stay in order.
    """
    middles = [(np.arange(size) + 0.5) / size for size in sizes]
    order: list[int] = np.argsort(np.concatenate(middles), kind="stable").tolist()
    return order


class _Passes:
    """An endless sequence of passes over blocks, each a new permutation.

    Args:
        num_blocks: Number of blocks.
        seed: The run's seed.
        *purpose: The purpose of the passes, as in `derive_seed`.
    """

    def __init__(self, num_blocks: int, seed: int, *purpose: str | int) -> None:
        assert num_blocks >= 1
        self._num_blocks = num_blocks
        self._seed = seed
        self._purpose = purpose
        self._dtype = np.int32 if num_blocks <= np.iinfo(np.int32).max else np.int64
        self._number = -1
        self._order: NDArray[np.integer] = np.empty(0, self._dtype)

    def take(self, begin: int, end: int) -> list[int]:
        """Return the blocks at positions begin to end of the endless sequence of passes."""
        blocks: list[int] = []
        while begin < end:
            number, offset = divmod(begin, self._num_blocks)
            taken = self._pass(number)[offset : offset + end - begin]
            blocks += taken.tolist()
            begin += len(taken)
        return blocks

    def _pass(self, number: int) -> NDArray[np.integer]:
        """Return the order of blocks in a pass, shape [num_blocks]; the last result is cached."""
        if self._number != number:
            self._number, self._order = -1, np.empty(0, self._dtype)  # frees the memory of the last pass
            rng = np.random.default_rng(derive_seed(self._seed, *self._purpose, "pass", number))
            order: NDArray[np.integer] = np.arange(self._num_blocks, dtype=self._dtype)
            rng.shuffle(order)
            self._number, self._order = number, order
        return self._order
