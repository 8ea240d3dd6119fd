"""Samplers for example-level privacy: every block, document or person is drawn with the same probability.

They are a pure function of (noise key, node, position). The draws are secret, because the accounting of DP-SGD assumes
that nobody knows whose text is in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from worldlm.data.samplers import BlockBatchSampler, MixtureBatchSampler, NodeSampler
from worldlm.federation.noise_key import NoiseKey

Unit: TypeAlias = Literal["block", "document", "person"]


class PoissonBatchSampler(NodeSampler):
    """Batches that contain each block with the same probability, as the accounting of DP-SGD assumes.

    A batch has `batch_size` blocks on average and may be empty.

    Args:
        num_blocks: Number of blocks of the node's text.
        batch_size: Expected number of blocks per batch, from 1 to `num_blocks`.
        key: The run's noise key, because the accounting also assumes that nobody knows which blocks were drawn.
        node: The node's name.

    Raises:
        ValueError: If `batch_size` is more than `num_blocks`.
        TypeError: If `key` is not a noise key.
    """

    unit: Unit = "block"
    """What is drawn."""

    def __init__(self, num_blocks: int, batch_size: int, key: NoiseKey, node: str) -> None:
        super().__init__(num_blocks, batch_size, node)
        if not isinstance(key, NoiseKey):
            raise TypeError(f"key is {key!r}: it must be a NoiseKey, such as trainer.noise_key")
        self._key = key
        if batch_size > num_blocks:
            raise ValueError(
                f"batch_size is {batch_size}; with Poisson sampling it must not be more than the "
                f"{num_blocks} {self.unit}s of the text"
            )
        self.sample_rate = batch_size / num_blocks
        """Probability that a block is in a batch."""

    def batch(self, step: int) -> list[int]:
        """Return the distinct blocks of a batch by its number; see `NodeSampler.batch`."""
        draws = self._key.stream(self.node, step, "examples").bernoulli(self.num_blocks, self.sample_rate)
        blocks: list[int] = np.flatnonzero(draws).tolist()
        return blocks


class UnitBatchSampler(PoissonBatchSampler):
    """Batches that contain each unit, a document or a person, with the same probability, and one block of each.

    A drawn unit contributes one of its blocks, drawn at random. So however much text a unit has, it changes the sum of
    a step's gradients by one clipped gradient at most, as the accountant assumes for the unit.

    Args:
        unit: `document` or `person`.
        unit_starts: The first block of each unit, and the number of blocks, shape [units + 1].
        batch_size: Expected number of units per batch, from 1 to their number.
        key: See `PoissonBatchSampler`.
        node: The node's name.

    Raises:
        ValueError: If `batch_size` is more than the number of units.
    """

    def __init__(self, unit: Unit, unit_starts: NDArray[np.int64], batch_size: int, key: NoiseKey, node: str) -> None:
        self.unit = unit
        super().__init__(len(unit_starts) - 1, batch_size, key, node)
        self._unit_starts = unit_starts

    def batch(self, step: int) -> list[int]:
        """Return one block of each drawn unit; see `NodeSampler.batch`."""
        units = super().batch(step)
        words = self._key.stream(self.node, step, "blocks").branch(0).take(len(units))
        first, after = self._unit_starts[:-1][units], self._unit_starts[1:][units]
        blocks: list[int] = (first + (words % (after - first).astype(np.uint64)).astype(np.int64)).tolist()
        return blocks


def make_sampler(
    sizes: Sequence[int],
    batch_size: int,
    seed: int,
    node: str,
    *,
    weights: Sequence[float] | None = None,
    key: NoiseKey | None = None,
    unit: Unit = "block",
    unit_starts: NDArray[np.int64] | None = None,
) -> NodeSampler:
    """Make the sampler of a node.

    Args:
        sizes: Number of blocks of each part of the node's text, in the order in which blocks are numbered.
        batch_size: Blocks per batch; their mean number with a key.
        seed: The run's seed.
        node: The node's name.
        weights: Share of each part in the tokens; None takes every block once per pass.
        key: The run's noise key, to draw batches as the accounting of example-level privacy assumes.
        unit: With a key: what is drawn.
        unit_starts: The first block of each document or person; see `UnitBatchSampler`. None for blocks.

    Raises:
        ValueError: If a Poisson-sampled batch has weights, or is larger than the text.
    """
    if key is None:
        if weights is None:
            return BlockBatchSampler(sum(sizes), batch_size, seed, node)
        return MixtureBatchSampler(sizes, weights, batch_size, seed, node)
    if weights is not None:
        raise ValueError(
            "weights of a mixture cannot be combined with example_privacy, whose accounting assumes the same "
            "probability for every block; remove the weights"
        )
    if unit_starts is not None:
        return UnitBatchSampler(unit, unit_starts, batch_size, key, node)
    return PoissonBatchSampler(sum(sizes), batch_size, key, node)
