"""Lightning's launching and process groups, without its training in step.

Lightning's DDP trains one model, all processes at once. Here every process trains nodes of its own, and only those of
one team (`devices_per_node`) train in step: each with the whole model (DDP), or with a slice of it (`fully_shard`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.strategies.launchers.subprocess_script import _basic_subprocess_cmd
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.optim import Optimizer

from worldlm.distributed.consistency import check_consistent, digest_of, this_process
from worldlm.distributed.fsdp import full_state_dict, shard_, unshard
from worldlm.distributed.network import interface_towards, probe_connections
from worldlm.distributed.transport import (
    MESSAGE_TIMEOUT,
    RankLost,
    gather_objects,
    is_network_error,
    short_message,
    to_rank_lost,
)

MINUTES_TO_JOIN = 10
"""How long a process waits for all others to be started."""


class WorldStrategy(DDPStrategy):
    """One process a team, or `team_size` of them, each team with nodes of its own.

    Args:
        team_size: Processes that train one node together, each on its share of every batch.
        fully_shard: Whether each of them holds a slice of the live module, and not all of it.
    """

    def __init__(self, team_size: int = 1, fully_shard: bool = False) -> None:
        super().__init__(timeout=timedelta(minutes=MINUTES_TO_JOIN))
        self.team_size = team_size
        self.fully_shard = fully_shard
        self._mesh: DeviceMesh | None = None
        self.command: list[str] = []
        """What starts another process like this one; by default the script that runs, with its arguments."""
        self.must_match: dict[str, str] = {}
        """What all processes must have been started with, by name, beside the topology and the seed."""

    @property
    def num_slices(self) -> int:
        """Processes among which a node's moments are divided."""
        return self.team_size if self.fully_shard else 1

    @property
    def world_size(self) -> int:
        """1: Lightning takes more for processes in step, and would talk to all of them in every batch."""
        return 1

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)
        self._launcher.strategy = self

    def setup_distributed(self) -> None:
        """Join the other processes, and see that all were started for the same run.

        Raises:
            RankLost: If one of them is missing, or cannot be reached.
            ValueError: If one was started with other settings.
        """
        assert self.cluster_environment is not None
        address = self.cluster_environment.main_address
        if self.num_nodes > 1 and (interface := interface_towards(address)):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        try:
            super().setup_distributed()
        except RuntimeError as error:
            if not is_network_error(error):
                raise
            raise RankLost(_MISSING.format(address=address, reason=short_message(error))) from error
        _set_pg_timeout(MESSAGE_TIMEOUT)
        probe_connections()
        trainer: Any = self.lightning_module and self.lightning_module.trainer
        world = {"seed": str(trainer.seed), "topology": digest_of(trainer.topology)}
        check_consistent(gather_objects((this_process(self.global_rank), {**self.must_match, **world})))

    def _get_process_group_backend(self) -> str:
        """Waiting nodes live in host memory, and so do their messages: these always travel by gloo."""
        return "gloo" if self.root_device.type == "cpu" else f"cpu:gloo,{self.root_device.type}:nccl"

    def reduce(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return what is logged as it is: processes that train different nodes have no figure in common."""
        return tensor

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Decide together, at the end of rounds, where all processes meet."""
        votes = torch.tensor(int(decision), device=self.root_device)
        dist.all_reduce(votes)
        return int(votes) == dist.get_world_size() if all else int(votes) > 0

    def configure_ddp(self) -> None:
        """Train in step with the own team, if there is one."""
        if self.team_size > 1 and not self.fully_shard:
            self._ddp_kwargs["process_group"] = self._team()
            super().configure_ddp()

    def _team(self) -> dist.ProcessGroup:
        """Make the groups of all teams, in all processes alike, and return the own one."""
        number, size = dist.get_world_size() // self.team_size, self.team_size
        groups = [dist.new_group([*range(i * size, (i + 1) * size)], timeout=MESSAGE_TIMEOUT) for i in range(number)]
        probe_connections()  # these have some of their own
        own: dist.ProcessGroup = groups[self.global_rank // size]
        return own

    # ------------------------------------------------------------------ in slices

    def model_to_device(self) -> None:
        """Leave a module that will be divided where it is: a device may not hold all of it."""
        if not self._shards:
            super().model_to_device()

    def shard_module(self, module: LightningModule) -> DeviceMesh | None:
        """Leave each device of a team its slice of a whole module, if it is to be so; all processes call this.

        Returns:
            The own team, where the module is divided.

        Raises:
            ValueError: As `worldlm.distributed.fsdp.shard_`.
        """
        if self._shards:
            self._mesh = DeviceMesh.from_group(self._team(), self.root_device.type)
            shard_(module, self._mesh)
            module.to(self.root_device)  # what has no parameters
        return self._mesh

    @property
    def _shards(self) -> bool:
        assert self.lightning_module is not None
        return self.fully_shard and self.lightning_module.trainer.state.fn == TrainerFn.FITTING

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the live module, whole."""
        assert self.lightning_module is not None
        return super().lightning_module_state_dict() if self._mesh is None else full_state_dict(self.lightning_module)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Tensor]:
        """Return the state of the optimizer that was active last, whole."""
        state = super().optimizer_state(optimizer)
        whole: dict[str, Tensor] = state if self._mesh is None else unshard(state, self._mesh, self.root_device)
        return whole

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Not where the module is divided: every node's optimizer is restored by itself, in slices."""
        return not self.fully_shard

    def teardown(self) -> None:
        """Let all go; a module in slices stays on its device, where another fit goes on with it."""
        module = self._lightning_module
        if self._mesh is not None:
            self._lightning_module = None
        super().teardown()
        self._lightning_module = module

    # ------------------------------------------------------------------ steps

    def training_step(self, batch: Tensor, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Train on the own share of a batch, of which hooks see the whole."""
        share = batch[self.global_rank % self.team_size :: self.team_size]
        return super().training_step(share, *args, **kwargs)


_MISSING = (
    f"the processes of the run did not find one another within {MINUTES_TO_JOIN} minutes ({{reason}}): each must be "
    "started, and reach the others and {address}; on several networks GLOO_SOCKET_IFNAME names the interface to use"
)


class Launcher(_SubprocessScriptLauncher):
    """Starts the other processes of this machine; if one of them fails, all end, with a line that says so."""

    strategy: WorldStrategy

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start them, then run the function in this one.

        Args:
            function: What all processes run.
            *args: Its arguments.
            trainer: As Lightning hands it over.
            **kwargs: Its keyword arguments.

        Raises:
            RankLost: If a process that trains in step with this one is gone.
        """
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._start()
            threading.Thread(target=self._watch, daemon=True, name="watch").start()
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            self._end_others()
            if is_network_error(error):
                raise to_rank_lost(error) from error
            raise

    def _start(self) -> None:
        cluster = self.cluster_environment
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = cluster.main_address, str(cluster.main_port)
        os.environ["NODE_RANK"], os.environ["LOCAL_RANK"] = str(cluster.node_rank()), "0"
        os.environ["WORLD_SIZE"] = str(self.num_processes * self.num_nodes)
        command = self.strategy.command or _basic_subprocess_cmd()
        for rank in range(1, self.num_processes):
            self.procs.append(subprocess.Popen(command, env={**os.environ, "LOCAL_RANK": str(rank)}))

    def _watch(self) -> None:
        while not any(process.poll() for process in self.procs):
            if all(process.poll() == 0 for process in self.procs):
                return
            time.sleep(0.5)
        time.sleep(2)  # the main process notices by itself when it waits for a message, and then ends in good order
        failed = next(process for process in self.procs if process.returncode)
        number = self.procs.index(failed) + 1
        end = f"signal {-failed.returncode}" if failed.returncode < 0 else f"status {failed.returncode}"
        told = f"process {number} of the run ended with {end}, and all others with it; go on with --ckpt_path last"
        print(f"worldlm: {told}", file=sys.stderr)
        self._end_others()
        os._exit(1)

    def _end_others(self) -> None:
        for process in self.procs:
            process.kill()
