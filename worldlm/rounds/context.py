"""The arguments of the hooks: the node that acts, its state, and the tools that a callback needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from worldlm.federation.noise_key import RandomStream, StreamFor
from worldlm.federation.parameters import Part, Tensors
from worldlm.federation.seeds import derive_seed
from worldlm.federation.state import NodeState
from worldlm.rounds.world import World
from worldlm.topology import Node

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The node that acts in a hook, its state, and the current round."""

    world: World
    """The topology, the partition of the parameters, and the keys and values that all nodes started from."""
    node: Node
    """The node that acts."""
    state: NodeState
    """The weights and counters of the node. Hooks that merge write into the weights in place."""
    round: int
    """Round of the world, from 0."""
    subround: int
    """Sub-round, counted from 0 over the round."""
    callbacks: Sequence[object] = ()
    """All callbacks of the method, in the order of the recipe."""

    @property
    def num_rounds(self) -> int | None:
        """Rounds of the whole run; None or -1 if it has no end."""
        return self.world.num_rounds

    def seed(self, purpose: str) -> int:
        """Return the seed of a random draw: a pure function of (seed, node, round, sub-round, purpose)."""
        return derive_seed(self.world.seed, self.node.name, self.round, self.subround, purpose)

    def noise(self, purpose: str) -> StreamFor:
        """Return what makes the random stream of noise that protects this node.

        The stream is a pure function of (noise key, node, round, sub-round, purpose, values to be noised). Without the
        key, nobody can compute or predict it.
        """
        assert self.world.noise_key is not None, "a topology that demands privacy has a noise key"
        return self.world.noise_key.stream_for(self.node.name, self.round, self.subround, purpose)

    def secret_draws(self, purpose: str) -> RandomStream | None:
        """Return a random stream for draws that others must not predict; None if the topology demands no privacy."""
        if self.world.noise_key is None:
            return None
        return self.world.noise_key.stream(self.node.name, self.round, self.subround, purpose)

    def part(self, part: Part) -> Tensors:
        """Return the node's tensors of one part, not copied."""
        return self.state.part(part, self.world.partition)

    def find(self, kind: type[T]) -> T | None:
        """Return the first callback of a type, or None."""
        return next((callback for callback in self.callbacks if isinstance(callback, kind)), None)

    def log(self, scalars: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars by tag.

        Args:
            scalars: Values by tag; by convention the tag of a node's metric is `NODE/metric`.
            step: By default the round, counted from 1 as on the console.
        """
        self.world.log.scalars(scalars, self.round + 1 if step is None else step)

    def log_text(self, tag: str, text: str) -> None:
        """Log a Markdown text of this round."""
        self.world.log.text(tag, text, self.round + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFit:
    """The local training of one node, as it begins."""

    module: nn.Module
    """The live module, which holds the node's weights."""
    optimizers: Sequence[Optimizer]
    """The node's optimizers, with their state."""
    device: torch.device
    """The device that trains."""
    batch_sampler: Any
    """Draws the node's batches; see `worldlm.data.BlockBatchSampler`."""
    resumed: bool
    """Whether this fit was interrupted, and now continues."""
