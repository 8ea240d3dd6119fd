"""Host memory: what is free, and what a process keeps or returns after it frees it."""

import ctypes
import os
import platform
import re
import sys
from pathlib import Path

import pytest
import torch

from worldlm.storage import host_memory
from worldlm.storage.host_memory import free_memory, give_back_freed_memory, keep_freed_memory, page_out


@pytest.fixture(autouse=True)
def _nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name, raising=False)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's allocator")
def test_freed_memory_is_kept() -> None:
    keep_freed_memory()
    tensors = [torch.ones(2**21) for _ in range(16)]  # 8 MB each
    held = resident()
    del tensors
    assert resident() > held - 2**25


@pytest.mark.skipif(sys.platform != "linux", reason="needs madvise of Linux")
def test_tensors_that_are_paged_out_keep_their_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"a": torch.arange(5000), "b": torch.arange(3)}
    torch.save(tensors, tmp_path / "file")
    mapped = torch.load(tmp_path / "file", mmap=True, weights_only=True)
    calls = []

    class Library:
        def __init__(self, name: None) -> None:
            self.library = ctypes_cdll(name)

        def madvise(self, begin: ctypes.c_void_p, size: ctypes.c_size_t, advice: int) -> None:
            assert self.library.madvise(begin, size, advice) == 0 or advice == 21, "an old kernel does not know it"
            calls.append(range(begin.value or 0, (begin.value or 0) + size.value))

    ctypes_cdll = ctypes.CDLL
    monkeypatch.setattr(host_memory.ctypes, "CDLL", Library)
    page_out(mapped.values())
    for name, pages in zip(mapped, calls, strict=True):
        assert pages.start % os.sysconf("SC_PAGE_SIZE") == 0
        assert pages.start <= mapped[name].data_ptr()
        assert pages.stop == mapped[name].data_ptr() + mapped[name].nbytes
        assert torch.equal(mapped[name], tensors[name])


def huge_page_addresses() -> list[range]:
    """Return the addresses for which huge pages were requested, whether or not the system has any left."""
    requested, addresses = [], range(0)
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            addresses = range(int(match[1], 16), int(match[2], 16))
        elif line.startswith("VmFlags:") and "hg" in line.split():
            requested.append(addresses)
    return requested


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc"
    or "[never]" in (host_memory._text(Path("/sys/kernel/mm/transparent_hugepage/enabled")) or "[never]"),
    reason="needs glibc's allocator and a system that grants huge pages",
)
def test_huge_pages_are_requested_for_new_tensors() -> None:
    keep_freed_memory()
    for _ in range(2):
        tensors = [torch.ones(2**18) for _ in range(100)]  # 1 MB each
        huge = huge_page_addresses()
        assert sum(any(tensor.data_ptr() in addresses for addresses in huge) for tensor in tensors) > 64
        del tensors
        held = resident()
        give_back_freed_memory()
        assert resident() < held - 2**26


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's allocator")
def test_the_heap_does_not_grow_if_the_address_space_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    held = Path("/proc/self/statm").read_text().split()[0]
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (2**33, resource.RLIM_INFINITY))
    keep_freed_memory()
    assert int(Path("/proc/self/statm").read_text().split()[0]) < int(held) + 2**12


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, sys.maxsize),
        ({"meminfo": "unheard of\n"}, sys.maxsize),
        ({"meminfo": "MemTotal: 9 kB\nMemAvailable:  4 kB\n"}, 4096),
        ({"meminfo": "MemAvailable: 4 kB\n", "memory.max": "max\n", "memory.current": "1\n"}, 4096),
        ({"meminfo": "MemAvailable: 4 kB\n", "memory.max": "3000\n", "memory.current": "1000\n"}, 2000),
        (
            {
                "meminfo": "MemAvailable: 4 kB\n",
                "memory.max": "3000\n",
                "memory.current": "1000\n",
                "memory.stat": "anon 200\ninactive_file 700\n",  # page cache that the system can drop
            },
            2700,
        ),
    ],
)
def test_free_memory(files: dict[str, str], free: int, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert free_memory(tmp_path, tmp_path) == free
