"""Makes the world of a run: places its nodes on the processes, and gives them the module's weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from worldlm.distributed.placement import place
from worldlm.distributed.transport import ProcessTransport
from worldlm.models.partition import parts_of
from worldlm.rounds.world import World
from worldlm.topology.changes import Changes
from worldlm.trainer.loaders import num_tokens
from worldlm.trainer.run_settings import RunSettings

log = logging.getLogger(__name__)


def make_world(trainer: pl.Trainer, run: RunSettings, loaders: Mapping[str, DataLoader[Any]]) -> World:
    """Make a world in which every node starts from the weights that the module has in process 0.

    Args:
        trainer: Has the live module, and its strategy broadcasts the weights to the other processes.
        run: The settings of the run.
        loaders: The training loaders, by data node. The nodes are distributed over the processes by the tokens that
            they train on in a round.
    """
    topology, plan, module = run.topology, run.plan, trainer.lightning_module
    costs = {name: n * num_tokens(loaders[name], plan.num_batches(name)) for name, n in plan.num_visits.items()}
    weights = {name: parameter.detach().cpu() for name, parameter in module.named_parameters()}
    weights = trainer.strategy.broadcast(weights)
    teams = place(topology, costs, run.num_ranks // run.devices_per_node)
    transport = ProcessTransport(
        topology, teams, trainer.global_rank, run.devices_per_node, lambda: trainer.received_sigterm
    )
    store = run.make_store([name for name in topology.nodes if transport.is_local(name)])
    return World(
        topology,
        parts_of(module),
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
