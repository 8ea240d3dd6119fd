"""Locks: if several processes need the same file, one creates it and the others wait."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def exclusive_lock(path: Path, what: str) -> Iterator[None]:
    """Hold a lock. A process that has to wait prints a line; a killed process releases its lock.

    Args:
        path: The file or folder to create. The lock is a hidden file beside it.
        what: The activity of the process that holds the lock, such as `packing it`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0.1)
    except Timeout:
        print(f"worldlm: another process is {what}; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
