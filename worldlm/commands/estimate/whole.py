"""The estimate of a run, put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from worldlm.commands.estimate.memory import (
    Device,
    of_checkpoint,
    of_device,
    of_one_machine,
    of_one_process,
    with_depth,
)
from worldlm.commands.estimate.messages import MessageSizes, message_sizes
from worldlm.commands.estimate.seconds import link_seconds, longest_way
from worldlm.commands.estimate.traffic import NodeTraffic, expect_traffic, num_selected
from worldlm.models import LanguageModule
from worldlm.rounds import RoundCallback
from worldlm.topology import Node, Topology
from worldlm.trainer.world_trainer import WorldTrainer


@dataclass(slots=True, kw_only=True)
class Level:
    """All nodes as far below the root, in one round of the world."""

    depth: int
    """Steps from the root, from 0."""
    num_nodes: int = 0
    num_with_data: int = 0
    messages: float = 0.0
    """Between these nodes and their parents, both ways."""
    bytes_down: float = 0.0
    bytes_up: float = 0.0
    residual_bytes: float = 0.0
    """Of residuals, both ways, at most: what really travels depends on the data."""
    link_seconds: float = 0.0
    """On the slowest link, all sub-rounds together."""
    machine_bytes: int = 0
    """Memory of the node that needs most, on a machine of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a run would take."""

    sizes: MessageSizes
    nodes: dict[str, NodeTraffic]
    """One round on every edge, by name."""
    levels: list[Level]
    num_rounds: int | None
    """Rounds of the run; None if it has no end."""
    tokens: float
    """Tokens of all fits of one round."""
    tokens_of_longest: float
    """Tokens of the fits of one round, at the node that reads most."""
    tokens_per_second: float | None
    """Of one machine; None if unknown."""
    link_seconds: float
    """Of one round, if training took no time and every node had a machine of its own."""
    round_seconds: float | None
    """Of one round, if every node had a machine of its own; None if the speed is unknown."""
    process_bytes: dict[str, int]
    """Memory of one process that runs the whole world, by what it is for."""
    device: Device
    """Memory of a device that trains a node."""
    checkpoint_bytes: int
    """One checkpoint of the whole world."""
    is_certain: bool
    """Whether the bytes, residuals left out, are exact: no draws, no dropouts, no deadline left to chance."""

    @property
    def process_seconds(self) -> float | None:
        """Seconds of one round if one process does all; links take none of them."""
        return None if self.tokens_per_second is None else self.tokens / self.tokens_per_second


def estimate(
    trainer: WorldTrainer,
    module: LanguageModule,
    batch_size: int,
    tokens_per_second: float | None = None,
    num_slices: int = 1,
) -> Estimate:
    """Work out what a run would take.

    Args:
        trainer: The run's; only its settings, topology and callbacks matter.
        module: Its model; it may be without weights, on the meta device.
        batch_size: Sequences of a batch, where a node's settings say nothing else.
        tokens_per_second: Speed of one machine; None if unknown.
        num_slices: Devices among which the weights of a node that trains are divided.
    """
    topology = trainer.topology
    callbacks = [one for one in trainer.callbacks if isinstance(one, RoundCallback)]  # type: ignore[attr-defined]
    sizes = message_sizes(module, callbacks)
    nodes = expect_traffic(topology, sizes)
    of_fit = _tokens_of_a_fit(trainer, module.architecture.max_seq_len, batch_size)
    read = [nodes[name].fits * tokens for name, tokens in of_fit.items()]
    speed, epochs = tokens_per_second, trainer.max_epochs
    process_bytes = of_one_process(topology, sizes, callbacks)
    return Estimate(
        sizes=sizes,
        nodes=nodes,
        levels=_levels(topology, sizes, nodes, callbacks),
        num_rounds=epochs if epochs is not None and epochs >= 0 else None,
        tokens=sum(read),
        tokens_of_longest=max(read),
        tokens_per_second=speed,
        link_seconds=longest_way(topology, sizes, lambda _: 0.0),
        round_seconds=None if not speed else longest_way(topology, sizes, lambda node: of_fit[node.name] / speed),
        process_bytes=process_bytes,
        device=of_device(module, num_slices),
        checkpoint_bytes=of_checkpoint(process_bytes),
        is_certain=all(_is_certain(node, sizes) for node in topology.nodes.values()),
    )


def _tokens_of_a_fit(trainer: WorldTrainer, seq_len: int, batch_size: int) -> dict[str, int]:
    of_batch = {n.name: (n.settings.batch_size or batch_size) * seq_len for n in trainer.topology.data_nodes if n.fits}
    return {name: trainer.plan.num_batches(name) * tokens for name, tokens in of_batch.items()}


def _levels(
    topology: Topology,
    sizes: MessageSizes,
    nodes: dict[str, NodeTraffic],
    callbacks: Sequence[RoundCallback],
) -> list[Level]:
    levels = [Level(depth=depth) for depth in range(topology.depth)]
    born = 0.0  # residuals selected in a round: each goes down through a level once, at most
    for depth, node in with_depth(topology.root):
        level, traffic, parent = levels[depth], nodes[node.name], topology.parent(node.name)
        level.num_nodes += 1
        level.num_with_data += node.holds_data
        level.messages += traffic.downloads + traffic.uploads
        level.bytes_down += traffic.bytes_down
        level.bytes_up += traffic.bytes_up
        level.residual_bytes += traffic.residuals_up * sizes.residual_up
        sends = parent is not None and not node.listens
        level.machine_bytes = max(level.machine_bytes, of_one_machine(node, sizes, callbacks, sends=sends))
        if parent is not None:
            seconds = traffic.downloads * link_seconds(parent, node, sizes)
            level.link_seconds = max(level.link_seconds, seconds)
            born += traffic.downloads * node.settings.num_subrounds * num_selected(node, sizes) if node.children else 0
    for level in levels[1:]:
        level.residual_bytes += born * sizes.residual_down
    return levels


def _is_certain(node: Node, sizes: MessageSizes) -> bool:
    """Whether chance, and residuals that make an upload larger, decide nothing about a node's children."""
    below = [child.settings for child in node.children if not child.listens]
    unsteady = any(one.link is not None and (one.link.jitter > 0 or sizes.residual_up) for one in below)
    is_late = node.settings.deadline_seconds is not None and unsteady
    is_drawn = node.settings.participation < 1 and bool(below)
    return not is_late and not is_drawn and all(one.dropout == 0 for one in below)
