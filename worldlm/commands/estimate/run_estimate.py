"""The whole estimate of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from worldlm.commands.estimate.memory import (
    Device,
    checkpoint_size,
    device_memory,
    frozen_size,
    machine_memory,
    process_memory,
    with_depth,
)
from worldlm.commands.estimate.message_sizes import MessageSizes, message_sizes
from worldlm.commands.estimate.round_time import critical_path, link_seconds
from worldlm.commands.estimate.traffic import NodeTraffic, expect_traffic
from worldlm.models import LanguageModule
from worldlm.rounds import RoundCallback
from worldlm.topology import Node, Topology
from worldlm.trainer.world_trainer import WorldTrainer


@dataclass(slots=True, kw_only=True)
class Level:
    """All nodes of one depth, in one round of the world."""

    depth: int
    """Levels below the root, from 0."""
    num_nodes: int = 0
    num_with_data: int = 0
    messages: float = 0.0
    """Messages between these nodes and their parents, both ways."""
    bytes_down: float = 0.0
    bytes_up: float = 0.0
    residual_bytes: float = 0.0
    """Bytes of residuals, both ways, at most: the exact number depends on the data."""
    link_seconds: float = 0.0
    """Seconds on the slowest link, all sub-rounds together."""
    machine_bytes: int = 0
    """Memory of the largest node, on a machine of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """An estimate of a run."""

    sizes: MessageSizes
    nodes: dict[str, NodeTraffic]
    """Traffic of one round, by name of the node."""
    levels: list[Level]
    num_rounds: int | None
    """Rounds of the run; None if the number is not limited."""
    tokens: float
    """Tokens of all fits of one round."""
    max_node_tokens: float
    """Tokens of the fits of one round, at the node that trains on most tokens."""
    tokens_per_second: float | None
    """Speed of one machine; None if unknown."""
    link_seconds: float
    """Seconds of one round on the links alone, if every node has a machine of its own."""
    round_seconds: float | None
    """Seconds of one round, if every node has a machine of its own; None if the speed is unknown."""
    process_bytes: dict[str, int]
    """Memory of one process that runs the whole world, by use."""
    device: Device
    """Memory of a device that trains a node."""
    checkpoint_bytes: int
    """Size of a checkpoint of the whole world."""
    is_exact: bool
    """Whether the bytes without residuals are exact: participation, dropout and deadlines do not depend on chance."""

    @property
    def process_seconds(self) -> float | None:
        """Seconds of one round if one process runs the whole world, without links."""
        return None if self.tokens_per_second is None else self.tokens / self.tokens_per_second


def estimate(
    trainer: WorldTrainer,
    module: LanguageModule,
    batch_size: int,
    tokens_per_second: float | None = None,
    num_slices: int = 1,
) -> Estimate:
    """Estimate a run.

    Args:
        trainer: The trainer of the run. Only its settings, topology and callbacks are used.
        module: The model; it may be on the meta device, without weights.
        batch_size: Sequences of a batch, for nodes without a setting of their own.
        tokens_per_second: Speed of one machine; None if unknown.
        num_slices: Devices that share the weights of the node that is training.
    """
    topology = trainer.topology
    callbacks = [callback for callback in trainer.callbacks if isinstance(callback, RoundCallback)]  # type: ignore[attr-defined]
    sizes = message_sizes(module, callbacks)
    nodes = expect_traffic(topology, sizes)
    fit_tokens = _fit_tokens(trainer, module.architecture.max_seq_len, batch_size)
    node_tokens = [nodes[name].fits * tokens for name, tokens in fit_tokens.items()]
    speed, epochs = tokens_per_second, trainer.max_epochs
    frozen = frozen_size(module)
    process_bytes = process_memory(topology, sizes, callbacks, frozen)
    return Estimate(
        sizes=sizes,
        nodes=nodes,
        levels=_levels(topology, sizes, nodes, callbacks, frozen),
        num_rounds=epochs if epochs is not None and epochs >= 0 else None,
        tokens=sum(node_tokens),
        max_node_tokens=max(node_tokens),
        tokens_per_second=speed,
        link_seconds=critical_path(topology, sizes, lambda _: 0.0),
        round_seconds=None if not speed else critical_path(topology, sizes, lambda node: fit_tokens[node.name] / speed),
        process_bytes=process_bytes,
        device=device_memory(module, num_slices),
        checkpoint_bytes=checkpoint_size(process_bytes),
        is_exact=all(_is_exact(node, sizes) for node in topology.nodes.values()),
    )


def _fit_tokens(trainer: WorldTrainer, seq_len: int, batch_size: int) -> dict[str, int]:
    fitting = [node for node in trainer.data_nodes if node.fits]
    batch_tokens = {node.name: (node.settings.batch_size or batch_size) * seq_len for node in fitting}
    return {name: trainer.plan.num_batches(name) * tokens for name, tokens in batch_tokens.items()}


def _levels(
    topology: Topology,
    sizes: MessageSizes,
    nodes: dict[str, NodeTraffic],
    callbacks: Sequence[RoundCallback],
    frozen: int,
) -> list[Level]:
    levels = [Level(depth=depth) for depth in range(topology.depth)]
    for depth, node in with_depth(topology.root):
        level, traffic, parent = levels[depth], nodes[node.name], topology.parent(node.name)
        level.num_nodes += 1
        level.num_with_data += node.holds_data
        level.messages += traffic.downloads + traffic.uploads
        level.bytes_down += traffic.bytes_down
        level.bytes_up += traffic.bytes_up
        level.residual_bytes += traffic.residuals * (sizes.residual_up + sizes.residual_down)
        sends = parent is not None and not node.listens
        level.machine_bytes = max(level.machine_bytes, frozen + machine_memory(node, sizes, callbacks, sends=sends))
        if parent is not None:
            seconds = traffic.downloads * link_seconds(parent, node, sizes)
            level.link_seconds = max(level.link_seconds, seconds)
    return levels


def _is_exact(node: Node, sizes: MessageSizes) -> bool:
    """Return whether the traffic of a node's children depends neither on chance nor on residuals in uploads."""
    children = [child.settings for child in node.children if not child.listens]
    varies = any(child.link is not None and (child.link.jitter > 0 or sizes.residual_up) for child in children)
    may_be_late = node.settings.deadline_seconds is not None and varies
    is_drawn = node.settings.participation < 1 and bool(children)
    return not may_be_late and not is_drawn and all(child.dropout == 0 for child in children)
