"""The number of threads with which each process of a run computes."""

import math
import os
import sys
from pathlib import Path

import torch

_BY_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def choose_num_threads(num_processes: int = 1) -> int:
    """Choose the number of threads that torch uses in each process of this machine.

    Threads that share a core slow each other down, most of all if they spin while they wait.

    Args:
        num_processes: Processes of this run on this machine, at least 1.

    Returns:
        The user's choice (OMP_NUM_THREADS, MKL_NUM_THREADS). Otherwise the number of physical cores that this process
        may use, within its CPU quota, divided by the number of processes; at least 1.
    """
    if any(os.environ.get(name) for name in _BY_USER):
        return torch.get_num_threads()
    return max(1, min(_cores(), _quota()) // num_processes)


def _cores(folder: Path = Path("/sys/devices/system/cpu")) -> int:
    """Count the physical cores on which this process may run; hyper-threads of one core count once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    usable = os.sched_getaffinity(0)
    siblings = [folder / f"cpu{number}" / "topology" / "thread_siblings_list" for number in usable]
    return len({path.read_text() for path in siblings}) if all(path.exists() for path in siblings) else len(usable)


def _quota(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """Return a container's CPU quota in cores, rounded up; `sys.maxsize` if there is no quota."""
    version_1 = folder / "cpu"
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((version_1 / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return sys.maxsize if quota in ("max", "-1") else math.ceil(int(quota) / int(period))
    except (OSError, ValueError):
        return sys.maxsize
