"""Makes the world of a run: places its nodes on the processes, gives them the module's weights, and stores them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from worldlm.distributed.consistency import check_consistent, this_process
from worldlm.distributed.placement import place
from worldlm.distributed.transport import ProcessTransport, gather_objects
from worldlm.federation.parameters import num_bytes
from worldlm.models.partition import parts_of
from worldlm.organisations.organisation import Organisation
from worldlm.rounds.program import fit_order
from worldlm.rounds.transport import Transport
from worldlm.rounds.world import World
from worldlm.storage.device_placement import NodesOn, warn_of_little_memory, where_nodes_wait
from worldlm.storage.node_store import NodeStore
from worldlm.storage.paged_store import PagedStore, Paging
from worldlm.topology import Topology
from worldlm.topology.changes import Changes
from worldlm.topology.upload_noise import noise_warnings
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

    Raises:
        ValueError: If processes have different frozen weights.
    """
    topology, plan, module = run.topology, run.plan, trainer.lightning_module
    if (base := getattr(module, "base_digest", None)) is not None:
        frozen = {"the digest of the frozen model (init_from)": str(base)}
        check_consistent(gather_objects((this_process(trainer.global_rank), frozen)))
    visits = plan.num_visits
    costs = {name: visits[name] * num_tokens(loader, plan.num_batches(name)) for name, loader in loaders.items()}
    weights = {name: parameter.detach().cpu() for name, parameter in module.named_parameters()}
    weights = trainer.strategy.broadcast(weights)
    transport = _make_transport(trainer, run, costs)
    partition = parts_of(module)
    if trainer.is_global_zero:
        sent = (weights[name].numel() for name, part in partition.items() if part in run.method.parts)
        for line in noise_warnings(topology, sum(sent)):
            log.warning(line)
    store = run.make_store([name for name in topology.nodes if transport.is_local(name)])
    return World(
        topology,
        partition,
        weights,
        seed=run.seed,
        store=store,
        transport=transport,
        log=run.log,
        noise_key=run.noise_key,
    )


def _make_transport(trainer: pl.Trainer, run: RunSettings, costs: Mapping[str, float]) -> Transport:
    def stopped() -> bool:
        return bool(trainer.received_sigterm)

    if run.organisation is not None:
        return run.organisation.transport(run.topology, stopped)
    teams = place(run.topology, costs, run.num_ranks // run.devices_per_node)
    return ProcessTransport(run.topology, teams, trainer.global_rank, run.devices_per_node, stopped)


def make_store(
    trainer: pl.Trainer,
    topology: Topology,
    names: Collection[str],
    nodes_on: NodesOn,
    paging: Paging | None,
    pages: Path,
) -> NodeStore:
    """Make the store for the nodes that a process holds.

    Args:
        trainer: Has the module and the device.
        topology: The nodes.
        names: The nodes that this process holds.
        nodes_on: Where nodes wait if they are in memory.
        paging: Keeps waiting nodes on disk; None keeps them in memory.
        pages: Folder of the pages, if `paging` names none.
    """
    if paging is not None:
        return PagedStore(topology, fit_order(topology), paging, Path(paging.folder or pages))
    size = num_bytes(dict(trainer.lightning_module.named_parameters()))
    device = where_nodes_wait(nodes_on, trainer.strategy.root_device, len(topology.nodes), size)
    if device.type == "cpu" and trainer.is_global_zero:
        nodes, num_slices = [topology.nodes[name] for name in names], getattr(trainer.strategy, "num_slices", 1)
        warn_of_little_memory(nodes, size, trainer.num_devices, num_slices)
    return NodeStore(device)


def accept_changes(changes: Changes, num_rounds: int, organisation: Organisation | None) -> None:
    """Log how the topology has changed since the checkpoint from which the run resumes.

    Raises:
        ValueError: If an organisation changes it alone.
    """
    if organisation is not None and organisation.changed_after != num_rounds:
        raise ValueError(
            f"the topology has changed ({'; '.join(changes.lines())}), to which the other organisations have not "
            "consented: undo the change, and let the root propose it"
        )
    for line in changes.lines():
        log.info("after round %d: %s", num_rounds, line)
    for line in changes.warnings():
        log.warning("after round %d: %s", num_rounds, line)
