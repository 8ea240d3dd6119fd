"""Processes that SLURM has started: the tasks of one `srun`, which share a world."""

from __future__ import annotations

import os
import re

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment


def in_job() -> bool:
    """Return whether this process runs in a SLURM job, with or without srun."""
    return "SLURM_JOB_ID" in os.environ


def step_size() -> tuple[int, int] | None:
    """Return the number of processes on each machine, and the number of machines, of the `srun` around this process.

    Returns:
        None without srun, and if srun started only this process, which may then start others itself.

    Raises:
        ValueError: If srun did not start the same number of processes on each machine.
    """
    num_processes, machines = (int(os.environ.get(f"SLURM_STEP_NUM_{unit}", 1)) for unit in ("TASKS", "NODES"))
    if num_processes == 1:
        return None
    per_machine = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    if len(set(re.sub(r"\(x\d+\)", "", per_machine).split(","))) > 1:
        raise ValueError(
            f"srun started {num_processes} processes on {machines} machines ({per_machine}): every machine must have "
            "the same number of processes, as with --ntasks-per-node"
        )
    return num_processes // machines, machines


class SrunStep(ClusterEnvironment):
    """The processes that one `srun` started.

    Lightning's own environment assumes that all tasks of the job are started. A command in a batch script without srun
    would then wait for processes that nobody starts. That environment also saves and requeues in the middle of a round.
    """

    @property
    def creates_processes_externally(self) -> bool:
        """Always true: srun has started all processes."""
        return True

    @property
    def main_address(self) -> str:
        """MASTER_ADDR, else the first machine of the step."""
        machines = os.environ.get("SLURM_STEP_NODELIST", "127.0.0.1")
        return os.environ.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(machines)

    @property
    def main_port(self) -> int:
        """MASTER_PORT, else a port below the ephemeral range, different for every step of a job."""
        job, step = (int(os.environ.get(name, 0)) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        return int(os.environ.get("MASTER_PORT", 15_000 + (101 * job + step) % 15_000))

    @staticmethod
    def detect() -> bool:
        """Return whether srun started this process and others."""
        return step_size() is not None

    def world_size(self) -> int:
        """Return the number of processes that srun started."""
        return int(os.environ["SLURM_STEP_NUM_TASKS"])

    def set_world_size(self, size: int) -> None:
        """Do nothing: srun has set the world size."""

    def global_rank(self) -> int:
        """Return the rank of this process."""
        return int(os.environ["SLURM_PROCID"])

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: srun has set the rank."""

    def local_rank(self) -> int:
        """Return the rank of this process on its machine."""
        return int(os.environ["SLURM_LOCALID"])

    def node_rank(self) -> int:
        """Return the rank of this process's machine."""
        return int(os.environ["SLURM_NODEID"])
