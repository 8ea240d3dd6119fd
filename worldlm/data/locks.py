"""Locks: of several processes that would make the same file, one makes it and the others wait."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def one_at_a_time(path: Path, what: str) -> Iterator[None]:
    """Hold a lock, and tell who has to wait for it; a process that is killed gives it up.

    Args:
        path: What is made. The lock is a hidden file beside it.
        what: What the process that has the lock does, such as `packing it`.
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
