"""Host memory: how much is free, and whether a process keeps the memory that it frees."""

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8  # of mallopt(3)
_MADV_PAGEOUT = 21  # of madvise(2)
_LARGEST = 32 * 2**20
"""The largest _MMAP_THRESHOLD that glibc accepts, in bytes. Larger allocations have their own mapping."""
_PADDING = 2**30
"""Bytes by which the heap grows at once."""
_keeps_freed = False


def free_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that this process can still allocate, within its container's limit.

    Returns:
        `sys.maxsize` if the system does not report it.
    """
    try:
        lines = dict(line.split(":") for line in (proc / "meminfo").read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
        if (limit := _text(cgroup / "memory.max")) not in ("", "max"):
            used = int(_text(cgroup / "memory.current"))
            cached = dict(line.split() for line in _text(cgroup / "memory.stat").splitlines()).get("inactive_file", 0)
            free = min(free, int(limit) - used + int(cached))
        return free
    except (OSError, ValueError, KeyError):
        return sys.maxsize


def _text(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def keep_freed_memory() -> None:
    """Make this process keep the memory that it frees, and reuse it for later allocations.

    By default, freed tensors return to the system, and every step allocates its memory again, page by page. This
    function also grows the heap at once. It requests huge pages of 2 MB for the new addresses if the system grants
    them on request (transparent huge pages), because the processor translates their addresses faster.

    Nothing happens if the C library is not glibc, or if the user has set an allocator variable such as
    ``MALLOC_TRIM_THRESHOLD_``.
    """
    global _keeps_freed
    libc = _glibc()
    if libc is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    _keeps_freed = True
    give_back_freed_memory()


def share_heap_between_threads() -> None:
    """Let threads that start later allocate from the heap that is there, if the C library is glibc.

    By default each thread gets a heap of its own, and keeps what it has freed there. Threads that receive messages
    would so keep tens of MB each.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_ARENA_MAX, 1)


def page_out(tensors: Iterable[Tensor]) -> None:
    """Take the memory of tensors that map a file from this process; what is used again is read again. Linux only.

    Args:
        tensors: All of them map a file.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    for tensor in tensors:
        begin, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        before = begin % mmap.PAGESIZE
        libc.madvise(ctypes.c_void_p(begin - before), ctypes.c_size_t(before + size), _MADV_PAGEOUT)


def give_back_freed_memory() -> None:
    """Return all freed memory of this process to the system, also between allocations, if the C library is glibc."""
    libc = _glibc()
    if libc is None:
        return
    libc.malloc_trim(0)
    if _keeps_freed:
        _grow_heap(libc)


def _grow_heap(libc: ctypes.CDLL) -> None:
    """Grow the heap by addresses that have no memory yet, and request huge pages for them."""
    import resource  # not available on Windows

    limits = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    if any(resource.getrlimit(limit)[0] != resource.RLIM_INFINITY for limit in limits):
        return  # the address space is limited
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.mallopt(_TOP_PAD, _PADDING)
    begin = libc.sbrk(0)
    libc.free(ctypes.c_void_p(libc.malloc(_LARGEST - 2**20)))
    end = libc.sbrk(0)
    libc.mallopt(_TOP_PAD, 2**17)  # glibc's default
    begin += -begin % mmap.PAGESIZE
    if begin < end:
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_HUGEPAGE)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return libc if hasattr(libc, "malloc_trim") else None
