"""Lightning's launcher and process groups, for processes that train different nodes.

In Lightning's DDP all processes train one model. In a world every team of processes trains its own nodes. Only the
processes of one team (`devices_per_node`) train in step: each with the whole model (DDP), or with a shard of it
(`fully_shard`).
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import Any

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch._C._distributed_c10d import Store
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.optim import Optimizer

from worldlm.distributed.consistency import check_consistent, digest_of, this_process
from worldlm.distributed.fsdp import full_state_dict, shard_, unshard
from worldlm.distributed.heartbeat import Heartbeat
from worldlm.distributed.joining import join
from worldlm.distributed.network import interface_towards, loopback_interface, probe_connections
from worldlm.distributed.transport import (
    MESSAGE_TIMEOUT,
    RankLost,
    gather_objects,
    is_network_error,
    short_message,
)
from worldlm.trainer.launcher import Launcher

MINUTES_TO_CONNECT = 2
"""How long a process tries to connect to all others, once they have started."""


class WorldStrategy(DDPStrategy):
    """Runs teams of `team_size` processes; every team trains its own nodes.

    Args:
        team_size: Processes that train one node together, each on its share of every batch.
        fully_shard: Whether each process of a team holds a shard of the live module instead of all of it.
    """

    def __init__(self, team_size: int = 1, fully_shard: bool = False) -> None:
        super().__init__()
        self.team_size = team_size
        self.fully_shard = fully_shard
        self._mesh: DeviceMesh | None = None
        self._group: dist.ProcessGroup | None = None
        self._store: Store | None = None
        self._num_fits = 0
        self._heartbeat: Heartbeat | None = None
        self.command: list[str] = []
        """The command that starts another process like this one; by default the running script with its arguments."""
        self.must_match: dict[str, str] = {}
        """Settings that must be equal in all processes, by name, in addition to the topology and the seed."""

    @property
    def num_slices(self) -> int:
        """Number of processes over which a node's moments are sharded."""
        return self.team_size if self.fully_shard else 1

    @property
    def world_size(self) -> int:
        """Always 1. With more, Lightning assumes that all processes train in step, and synchronises every batch."""
        return 1

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)
        self._launcher.get_command = lambda: self.command

    def setup_distributed(self) -> None:
        """Join the other processes, and check that all were started for the same run.

        Raises:
            RankLost: If a process is missing or cannot be reached.
            ValueError: If a process was started with other settings.
        """
        if dist.is_initialized():  # by an earlier fit
            check_consistent(gather_objects((this_process(self.global_rank), self._must_match())))
        else:
            self.set_world_ranks()
            self._connect()
        super().setup_distributed()
        self._watch_others()

    def _connect(self) -> None:
        assert self.cluster_environment is not None
        cluster, one_machine = self.cluster_environment, self.num_nodes == 1
        rank, num_ranks, address = cluster.global_rank(), cluster.world_size(), cluster.main_address
        threads = {"number of threads (OMP_NUM_THREADS)": str(torch.get_num_threads())}
        store = self._store = join(
            rank, num_ranks, address, cluster.main_port, self._must_match(), threads, one_machine=one_machine
        )
        if interface := loopback_interface() if one_machine else interface_towards(address):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        try:
            dist.init_process_group(
                self._get_process_group_backend(),
                store=store,
                rank=rank,
                world_size=num_ranks,
                timeout=timedelta(minutes=MINUTES_TO_CONNECT),
                device_id=self.root_device if self.root_device.type != "cpu" else None,
            )
        except RuntimeError as error:
            if not is_network_error(error):
                raise
            raise RankLost(_NOT_CONNECTED.format(reason=short_message(error))) from error
        _set_pg_timeout(MESSAGE_TIMEOUT)
        probe_connections()

    def _watch_others(self) -> None:
        if self._store is not None:
            self._num_fits += 1
            store: Store = self._store.clone()  # type: ignore[attr-defined]  # a connection of its own
            rank, num_ranks = dist.get_rank(), dist.get_world_size()
            self._heartbeat = Heartbeat(store, self._num_fits, rank, num_ranks, self._end_all)
            self._heartbeat.start()

    def _end_all(self, message: str) -> None:
        """End this process, from another thread: the main one may wait for the silent process for ever."""
        print(f"worldlm: {message}", file=sys.stderr)
        if isinstance(self._launcher, Launcher):
            self._launcher.end_others()
        os._exit(1)

    def _must_match(self) -> dict[str, str]:
        """Return the settings that must be equal in all processes."""
        trainer: Any = self.lightning_module and self.lightning_module.trainer
        versions = {"torch": str(torch.__version__), "lightning": lightning.__version__}
        world = {"seed": str(trainer.seed), "topology": digest_of(trainer.topology)}
        return {**versions, **self.must_match, **world, "device": self.root_device.type}

    def _get_process_group_backend(self) -> str:
        """Return gloo for messages, which are in host memory like the waiting nodes, and nccl for GPUs."""
        return "gloo" if self.root_device.type == "cpu" else f"cpu:gloo,{self.root_device.type}:nccl"

    def reduce(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return a logged value unchanged: processes that train different nodes have no common value."""
        return tensor

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Combine the decisions of all processes, which call this at the end of a round."""
        votes = torch.tensor(int(decision), device=self.root_device)
        dist.all_reduce(votes)
        return int(votes) == dist.get_world_size() if all else int(votes) > 0

    def configure_ddp(self) -> None:
        """Set up DDP within the team of this process, if the team has several processes and does not shard."""
        if self.team_size > 1 and not self.fully_shard:
            self._ddp_kwargs["process_group"] = self._team()
            super().configure_ddp()

    def _team(self) -> dist.ProcessGroup:
        """Make the process groups of all teams, in the same order in all processes, and return this process's group."""
        num_teams, size = dist.get_world_size() // self.team_size, self.team_size
        groups = [dist.new_group([*range(i * size, (i + 1) * size)], timeout=MESSAGE_TIMEOUT) for i in range(num_teams)]
        probe_connections()  # the new groups have opened new connections
        group: dist.ProcessGroup = groups[self.global_rank // size]
        self._group = group
        return group

    # ------------------------------------------------------------------ sharding

    def model_to_device(self) -> None:
        """Move the module to the device, unless it will be sharded: a device may not hold all of it."""
        if not self._shards:
            super().model_to_device()

    def shard_module(self, module: LightningModule) -> DeviceMesh | None:
        """Shard a whole module over the team, if `fully_shard` is set. All processes call it together.

        Returns:
            The mesh of the team; None if the module is not sharded.

        Raises:
            ValueError: As `worldlm.distributed.fsdp.shard_`.
        """
        if self._shards:
            self._mesh = DeviceMesh.from_group(self._team(), self.root_device.type)
            shard_(module, self._mesh)
            module.to(self.root_device)  # buffers, which are not sharded
        return self._mesh

    @property
    def _shards(self) -> bool:
        assert self.lightning_module is not None
        return self.fully_shard and self.lightning_module.trainer.state.fn == TrainerFn.FITTING

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the whole state dict of the live module."""
        assert self.lightning_module is not None
        return super().lightning_module_state_dict() if self._mesh is None else full_state_dict(self.lightning_module)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Tensor]:
        """Return the whole state of an optimizer."""
        state = super().optimizer_state(optimizer)
        whole: dict[str, Tensor] = state if self._mesh is None else unshard(state, self._mesh, self.root_device)
        return whole

    @property
    def lightning_restore_optimizer(self) -> bool:
        """False if the module is sharded: `NodeSlot` restores the optimizer of every node as shards."""
        return not self.fully_shard

    def teardown(self) -> None:
        """Release all resources. A sharded module stays on its device, for the next fit."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
        module = self._lightning_module
        if self._mesh is not None:
            self._lightning_module = None
        super().teardown()
        self._lightning_module = module

    # ------------------------------------------------------------------ steps

    def training_step(self, batch: Any, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Train on this process's share of a batch: of each of its tensors. Hooks receive the whole batch."""
        examples = slice(self.global_rank % self.team_size, None, self.team_size)
        share = apply_to_collection(batch, Tensor, lambda tensor: tensor[examples] if tensor.dim() else tensor)
        return super().training_step(share, *args, **kwargs)

    def team_mean(self, value: Tensor) -> Tensor:
        """Return the mean of a value over the processes of this team, which all call it together."""
        if self._group is not None:
            dist.all_reduce(value, group=self._group)
        return value / self.team_size


_NOT_CONNECTED = (
    f"all processes of the run have started, but could not connect to one another within {MINUTES_TO_CONNECT} minutes "
    "({reason}): check that each machine can reach the others on all ports; if a machine has several networks, set "
    "GLOO_SOCKET_IFNAME to the interface to use"
)
