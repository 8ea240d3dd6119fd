"""How a training process uses its machine: threads, and memory that was freed."""

import ctypes
import math
import mmap
import os
import sys
from pathlib import Path

import torch

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)
_LARGEST = 32 * 2**20
"""The highest _MMAP_THRESHOLD that glibc takes, in bytes: what is larger has a mapping of its own."""
_ROOM = 2**30
_keeps = False
_BY_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def sensible_threads(num_processes: int = 1) -> int:
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


def free_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many bytes this process could still take, within its container's limit; without end if nobody says."""
    try:
        lines = dict(line.split(":") for line in (proc / "meminfo").read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
        if (limit := _text(cgroup / "memory.max")) not in ("", "max"):
            held = int(_text(cgroup / "memory.current"))
            cached = dict(line.split() for line in _text(cgroup / "memory.stat").splitlines()).get("inactive_file", 0)
            free = min(free, int(limit) - held + int(cached))
        return free
    except (OSError, ValueError, KeyError):
        return sys.maxsize


def _text(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for what it allocates next, where its C library is glibc.

    By default freed tensors go back to the system, and every step gets its memory anew, page by page. Room for more is
    made at once too, and the system asked to lend it in pages of 2 MB where it does so on request (transparent huge
    pages): in these the processor finds its way sooner. What the user has set (MALLOC_TRIM_THRESHOLD_, ...) stays.
    """
    global _keeps
    libc = _glibc()
    if libc is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    _keeps = True
    give_back_freed_memory()


def give_back_freed_memory() -> None:
    """Give all memory that this process has freed back to the system, holes too, where its C library is glibc."""
    libc = _glibc()
    if libc is None:
        return
    libc.malloc_trim(0)
    if _keeps:
        _make_room(libc)


def _make_room(libc: ctypes.CDLL) -> None:
    """Let the heap grow, by addresses without memory as yet, and ask for large pages there."""
    import resource  # which Windows has not

    limits = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    if any(resource.getrlimit(limit)[0] != resource.RLIM_INFINITY for limit in limits):
        return  # addresses are scarce
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.mallopt(_TOP_PAD, _ROOM)
    begin = libc.sbrk(0)
    libc.free(ctypes.c_void_p(libc.malloc(_LARGEST - 2**20)))
    end = libc.sbrk(0)
    libc.mallopt(_TOP_PAD, 2**17)  # its default
    begin += -begin % mmap.PAGESIZE
    if begin < end:
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_HUGEPAGE)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return libc if hasattr(libc, "malloc_trim") else None
