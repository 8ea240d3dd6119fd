"""Makes the world of a run: places its nodes on the processes, and gives them the module's weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl

from worldlm.distributed.placement import place
from worldlm.distributed.transport import ProcessTransport
from worldlm.rounds.world import World
from worldlm.topology.changes import Changes
from worldlm.trainer.run_settings import RunSettings

log = logging.getLogger(__name__)


def make_world(trainer: pl.Trainer, run: RunSettings, module: Any, costs: Mapping[str, float]) -> World:
    """Make a world in which every node starts from the weights that the module has in process 0.

    Args:
        trainer: Its strategy broadcasts the weights to the other processes.
        run: The settings of the run.
        module: The live module, with `partition()`.
        costs: Cost of each data node's fits in one round, by name and in any unit. The nodes are distributed over the
            processes by these costs.
    """
    topology = run.topology
    weights = {name: parameter.detach().cpu() for name, parameter in module.named_parameters()}
    weights = trainer.strategy.broadcast(weights)
    teams = place(topology, costs, run.num_ranks // run.devices_per_node)
    transport = ProcessTransport(
        topology, teams, trainer.global_rank, run.devices_per_node, lambda: trainer.received_sigterm
    )
    store = run.make_store([name for name in topology.nodes if transport.is_local(name)])
    return World(
        topology,
        module.partition(),
        weights,
        seed=run.seed,
        store=store,
        transport=transport,
        log=run.log,
        noise_key=run.noise_key,
    )


def log_changes(changes: Changes, num_rounds: int) -> None:
    """Log how the topology has changed since the checkpoint from which the run resumes."""
    for line in changes.lines():
        log.info("after round %d: %s", num_rounds, line)
    for line in changes.warnings():
        log.warning("after round %d: %s", num_rounds, line)
