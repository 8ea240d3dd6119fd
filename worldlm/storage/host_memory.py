"""The memory of the machine that a process trains on: how much is free, and what happens to memory it frees."""

import ctypes
import mmap
import os
import sys
from pathlib import Path

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)
_LARGEST = 32 * 2**20
"""The highest _MMAP_THRESHOLD that glibc takes, in bytes: what is larger has a mapping of its own."""
_ROOM = 2**30
_keeps = False


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
