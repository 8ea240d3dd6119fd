"""What SLURM has started: the processes of one `srun`, which share a world."""

from __future__ import annotations

import os
import re

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment


def in_job() -> bool:
    """Whether this process runs in a job of SLURM's, with or without srun."""
    return "SLURM_JOB_ID" in os.environ


def step_size() -> tuple[int, int] | None:
    """Return how many processes on each machine, and how many machines, the `srun` around this process has.

    Returns:
        None without srun, and where srun started this process alone, which may then start others by itself.

    Raises:
        ValueError: If srun did not start as many on each machine.
    """
    number, machines = (int(os.environ.get(f"SLURM_STEP_NUM_{what}", 1)) for what in ("TASKS", "NODES"))
    if number == 1:
        return None
    per_machine = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    if len(set(re.sub(r"\(x\d+\)", "", per_machine).split(","))) > 1:
        raise ValueError(
            f"srun started {number} processes on {machines} machines, {per_machine} of them: there must be as many on "
            "each, as with --ntasks-per-node"
        )
    return number // machines, machines


class SrunStep(ClusterEnvironment):
    """The processes that one `srun` started.

    Lightning's own environment goes by what the whole job may start: a command in a batch script that is not preceded
    by srun would wait for processes that nobody starts. It also saves and requeues in the middle of a round.
    """

    @property
    def creates_processes_externally(self) -> bool:
        """Yes."""
        return True

    @property
    def main_address(self) -> str:
        """MASTER_ADDR, else the first machine of the step."""
        machines = os.environ.get("SLURM_STEP_NODELIST", "127.0.0.1")
        return os.environ.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(machines)

    @property
    def main_port(self) -> int:
        """MASTER_PORT, else one below those that a system hands out, which all steps of a job have for themselves."""
        job, step = (int(os.environ.get(name, 0)) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        return int(os.environ.get("MASTER_PORT", 15_000 + (101 * job + step) % 15_000))

    @staticmethod
    def detect() -> bool:
        """Whether srun started this process and others."""
        return step_size() is not None

    def world_size(self) -> int:
        """Return how many processes srun started."""
        return int(os.environ["SLURM_STEP_NUM_TASKS"])

    def set_world_size(self, size: int) -> None:
        """Leave it as it is: srun has said."""

    def global_rank(self) -> int:
        """Return the number of this process."""
        return int(os.environ["SLURM_PROCID"])

    def set_global_rank(self, rank: int) -> None:
        """Leave it as it is: srun has said."""

    def local_rank(self) -> int:
        """Return its number on its machine."""
        return int(os.environ["SLURM_LOCALID"])

    def node_rank(self) -> int:
        """Return the number of its machine."""
        return int(os.environ["SLURM_NODEID"])
