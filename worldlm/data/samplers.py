"""Samplers: which blocks a node sees next.

A sampler is a pure function of (seed, node, position): neither the order in which nodes are
visited, nor a restart, nor the number of data workers changes what a node trains on.
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
"""Draws within which a weighted mixture takes from each part exactly its quota."""


class NodeSampler(Sampler[list[int]], ABC):
    """Batches of blocks for one node. The loop sets `start` and `length` before each visit to it.

    Args:
        num_blocks: Blocks of the node's text, at least 1.
        batch_size: Blocks of a batch, at least 1.
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
        """Batches of this visit; at first as many as would make one pass over the text."""

    def __len__(self) -> int:
        """Return the number of batches of this visit."""
        return self.length

    def __iter__(self) -> Iterator[list[int]]:
        """Return the batches of the visit that `start` and `length` describe now."""
        return (self.batch(step) for step in range(self.start, self.start + self.length))

    @abstractmethod
    def batch(self, step: int) -> list[int]:
        """Return the blocks of a batch by its number, counted from the node's first."""


class BlockBatchSampler(NodeSampler):
    """Pass after pass over a node's text, each in a new random order.

    A batch may reach into the next pass. For the arguments see `NodeSampler`.
    """

    def __init__(self, num_blocks: int, batch_size: int, seed: int, node: str) -> None:
        super().__init__(num_blocks, batch_size, seed, node)
        self._passes = _Passes(num_blocks, seed, node)

    def batch(self, step: int) -> list[int]:
        """Return the blocks of a batch by its number; see `NodeSampler.batch`."""
        return self._passes.take(step * self.batch_size, (step + 1) * self.batch_size)


class MixtureBatchSampler(NodeSampler):
    """Blocks of several texts in given shares.

    Each window of `WINDOW` draws takes from each part exactly its quota, in a new random order; and
    each part has its own endless passes, as if it were read alone. So, of the first n draws, part k
    has n * quota / WINDOW, give or take quota * (1 - quota / WINDOW) at most.

    Args:
        sizes: Blocks of each part, at least 1 each; blocks are numbered from part to part.
        weights: Share of each part, positive numbers of which only the ratios count.
        batch_size: Blocks of a batch, at least 1.
        seed: The run's seed.
        node: The node's name.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], batch_size: int, seed: int, node: str) -> None:
        assert len(sizes) == len(weights)
        super().__init__(sum(sizes), batch_size, seed, node)
        self.quotas = quotas(weights)
        """Draws from each part in a window."""
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
        """Return the blocks at positions begin to end, or to its last, of a window."""
        order = self._order(number)
        parts = order[begin:end]
        blocks = np.empty(len(parts), np.int64)
        for part in np.unique(parts).tolist():
            places = np.flatnonzero(parts == part)
            first = number * self.quotas[part] + np.count_nonzero(order[:begin] == part)
            blocks[places] = self._passes[part].take(first, first + len(places))
            blocks[places] += self._firsts[part]
        return blocks.tolist()

    def _order(self, number: int) -> NDArray[np.uint16]:
        """Return the part of each draw in a window, shape [WINDOW]; the last one is kept."""
        if self._window[0] != number:
            rng = np.random.default_rng(derive_seed(self.seed, self.node, "mixture", number))
            order = np.repeat(np.arange(len(self.quotas), dtype=np.uint16), self.quotas)
            rng.shuffle(order)
            self._window = (number, order)
        return self._window[1]


class PoissonBatchSampler(NodeSampler):
    """Batches in which every block is taken with the same probability, as DP-SGD's accounts need.

    A batch has `batch_size` blocks on average and may be empty.

    Args:
        num_blocks: Blocks of the node's text.
        batch_size: Expected blocks of a batch, from 1 to `num_blocks`.
        seed: The run's seed.
        node: The node's name.

    Raises:
        ValueError: If `batch_size` is more than `num_blocks`.
    """

    def __init__(self, num_blocks: int, batch_size: int, seed: int, node: str) -> None:
        super().__init__(num_blocks, batch_size, seed, node)
        if batch_size > num_blocks:
            raise ValueError(
                f"batch_size is {batch_size}; with Poisson sampling it must not be more than the "
                f"{num_blocks} blocks of the text"
            )
        self.sample_rate = batch_size / num_blocks
        """Probability of a block to be in a batch."""

    def batch(self, step: int) -> list[int]:
        """Return the distinct blocks of a batch by its number; see `NodeSampler.batch`."""
        rng = np.random.default_rng(derive_seed(self.seed, self.node, "poisson", step))
        # One coin for each block, drawn as the number of heads and then which they are.
        size = rng.binomial(self.num_blocks, self.sample_rate)
        blocks: list[int] = rng.choice(self.num_blocks, size, replace=False, shuffle=False).tolist()
        return blocks


def make_sampler(
    sizes: Sequence[int],
    batch_size: int,
    seed: int,
    node: str,
    *,
    weights: Sequence[float] | None = None,
    poisson: bool = False,
) -> NodeSampler:
    """Make the sampler of a node.

    Args:
        sizes: Blocks of each part of the node's text, in the order in which they are numbered.
        batch_size: Blocks of a batch, on average if `poisson`.
        seed: The run's seed.
        node: The node's name.
        weights: Share of each part in the tokens; None takes every block once a pass.
        poisson: Whether batches must be drawn as example-level privacy accounts for.

    Raises:
        ValueError: If a Poisson-sampled batch has weights, or is larger than the text.
    """
    if weights is None:
        kind = PoissonBatchSampler if poisson else BlockBatchSampler
        return kind(sum(sizes), batch_size, seed, node)
    if poisson:
        raise ValueError(
            "weights of a mixture do not go with example_privacy, whose accounts need the same probability for "
            "every block; drop the weights"
        )
    return MixtureBatchSampler(sizes, weights, batch_size, seed, node)


def quotas(weights: Sequence[float]) -> list[int]:
    """Share the draws of a window among parts: by largest remainder, the rarest at least one.

    Args:
        weights: Positive numbers, at most `WINDOW` of them.

    Returns:
        Numbers that sum to `WINDOW`.
    """
    assert len(weights) <= WINDOW
    total = sum(map(Fraction, weights), Fraction())  # exact, however unlike the weights are
    ideals = [WINDOW * Fraction(weight) / total for weight in weights]
    shares = [max(1, math.floor(ideal)) for ideal in ideals]
    while missing := WINDOW - sum(shares):
        lacks = [ideal - share for ideal, share in zip(ideals, shares, strict=True)]
        if missing > 0:
            shares[lacks.index(max(lacks))] += 1
        else:  # the rarest got more than they lack, and the others make room
            shares[min((lack, part) for part, lack in enumerate(lacks) if shares[part] > 1)[1]] -= 1
    return shares


def spread(sizes: Sequence[int]) -> list[int]:
    """Order the blocks of several parts, each once, so that every beginning holds each part by its size.

    Args:
        sizes: Blocks of each part.

    Returns:
        All blocks; those of one part in their order.
    """
    middles = [(np.arange(size) + 0.5) / size for size in sizes]
    order: list[int] = np.argsort(np.concatenate(middles), kind="stable").tolist()
    return order


class _Passes:
    """Pass after pass over some blocks, each a permutation of them.

    Args:
        num_blocks: Number of blocks.
        seed: The run's seed.
        *purpose: What the passes are for, as `derive_seed` takes it.
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
        """Return the order of blocks in a pass, shape [num_blocks]; the last one is kept."""
        if self._number != number:
            self._number, self._order = -1, np.empty(0, self._dtype)  # frees the last one
            rng = np.random.default_rng(derive_seed(self._seed, *self._purpose, "pass", number))
            order: NDArray[np.integer] = np.arange(self._num_blocks, dtype=self._dtype)
            rng.shuffle(order)
            self._number, self._order = number, order
        return self._order
