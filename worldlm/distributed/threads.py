"""How many threads each process of a run computes with."""

import math
import os
import sys
from pathlib import Path

import torch

_BY_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def choose_num_threads(num_processes: int = 1) -> int:
    """Choose how many threads torch computes with in each of so many processes.

    Threads that share a core cost more than they bring, above all where they spin while they wait.

    Args:
        num_processes: Processes of this run on this machine, at least 1.

    Returns:
        What the user has chosen (OMP_NUM_THREADS, MKL_NUM_THREADS), else the physical cores that this process may use,
        within its CPU quota, divided among the processes; at least 1.
    """
    if any(os.environ.get(name) for name in _BY_USER):
        return torch.get_num_threads()
    return max(1, min(_cores(), _quota()) // num_processes)


def _cores(folder: Path = Path("/sys/devices/system/cpu")) -> int:
    """Count the physical cores that this process may run on: two hyper-threads of one are one."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    usable = os.sched_getaffinity(0)
    siblings = [folder / f"cpu{number}" / "topology" / "thread_siblings_list" for number in usable]
    return len({path.read_text() for path in siblings}) if all(path.exists() for path in siblings) else len(usable)


def _quota(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many cores a container's CPU quota is worth, rounded up; where there is none, more than there are."""
    version_1 = folder / "cpu"
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((version_1 / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return sys.maxsize if quota in ("max", "-1") else math.ceil(int(quota) / int(period))
    except (OSError, ValueError):
        return sys.maxsize
