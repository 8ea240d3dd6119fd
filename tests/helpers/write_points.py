"""Interrupts a command at its n-th change of the disk: kills it, leaves a file half written, or makes the disk fail."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

How = Literal["count", "kill", "torn", "full", "read-only"]
KILLED = 77
"""The exit status of a process that was killed."""

_CHANGES = {"os.rename", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.rmdir", "os.remove"}
_REMOVALS = {"os.rmdir", "os.remove"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class _Watch:
    """What the audit hook, which cannot be removed, does at a change of the disk."""

    on_change: Callable[[str, Path], None] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _Watch.on_change is None or not (event in _CHANGES or event == "open"):
        return
    path = arguments[0]
    if not isinstance(path, str | bytes | os.PathLike):
        return  # a file that is open already
    if event == "open" and not (arguments[2] or 0) & _WRITING:
        return
    place = Path(os.path.abspath(os.fsdecode(path)))
    if place.is_relative_to(Path.cwd()) and "__pycache__" not in place.parts:
        _Watch.on_change(event, place)


sys.addaudithook(_hook)


@contextmanager
def _watched(on_change: Callable[[str, Path], None]) -> Iterator[None]:
    """Call a function before every change of the disk below the current folder."""
    _Watch.on_change = on_change
    try:
        yield
    finally:
        _Watch.on_change = None


class Interruption:
    """Counts the changes, and interrupts at one of them.

    Args:
        number: The change, from 1.
        how: `kill` before it, `torn` in the middle of writing a file, `full` or `read-only`: it and all later ones
            fail, except that files can be removed from a full disk. `count` only counts.
    """

    def __init__(self, number: int = 0, how: How = "count") -> None:
        self.number, self.how, self.changes = number, how, list[str]()

    def __call__(self, event: str, path: Path) -> None:
        self.changes.append(f"{event} {path.name}")
        if self.how == "count" or len(self.changes) < self.number:
            return
        if self.how == "kill":
            os._exit(KILLED)
        if self.how == "torn":
            if event == "open" and not path.is_dir():
                _Watch.on_change = None
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if path.exists() else b"{")
            os._exit(KILLED)
        if self.how == "full" and event in _REMOVALS:
            return
        code = errno.ENOSPC if self.how == "full" else errno.EROFS
        raise OSError(code, os.strerror(code), str(path))


def count_changes(action: Callable[[], object]) -> list[str]:
    """Return the changes of the disk that an action makes."""
    counter = Interruption()
    with _watched(counter):
        action()
    return counter.changes


def in_child(action: Callable[[], int], number: int, how: How, log: Path) -> int:
    """Run an action in a forked process that is interrupted; return its exit status. Its output goes to a file."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
        with _watched(Interruption(number, how)):
            status = action()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(status)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, without locks, logs, TensorBoard's files and what depends on the time."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        left_out = ".lock" in path.name or ".tfevents." in name or name.startswith("child.txt")
        if path.is_file() and not left_out:
            found[name] = path.read_bytes()
            if path.name == "results.json":
                record = json.loads(found[name])
                found[name] = json.dumps(record | {"seconds": 0, "last_start": 0}).encode()
            if path.name in ("report.html", "README.md") or path.suffix == ".ckpt":
                found[name] = b""  # with the time
    return found


def interrupt_everywhere(folder: Path, run: Callable[[], int], how: How, step: int = 1) -> None:
    """Interrupt a command at each change that it makes, or at some of them, and run it again after each."""
    backup, log = folder.with_name(f"{folder.name}-backup"), folder.with_name(f"{folder.name}-child.txt")
    shutil.copytree(folder, backup)
    assert run() == 0  # imports everything
    restore(folder, backup)
    changes = count_changes(run)
    expected = snapshot(folder)
    for number, change in list(enumerate(changes, 1))[::step]:
        restore(folder, backup)
        status, output = in_child(run, number, how, log), log.read_text()
        where = f"{how} at change {number}, {change}, of {len(changes)}; output: {output}"
        assert "Traceback" not in output, where
        if how in ("kill", "torn"):
            assert status == KILLED, where
        else:
            notices = ("worldlm: warning", "worldlm: evaluating")
            lines = [line for line in output.splitlines() if line.startswith("worldlm: ")]
            lines = [line for line in lines if not line.startswith(notices)]
            assert status in (0, 2), where
            assert len(lines) == (status == 2), where
            assert status == 0 or "No space left" in output or "Read-only file system" in output, where
        if how in ("kill", "torn") or status == 2:
            status = in_child(run, 0, "count", log)
            is_complete = status == 2 and "is not empty: choose another folder" in log.read_text()
            assert status == 0 or is_complete, f"{where}; again: {log.read_text()}"
        after = snapshot(folder)
        different = [name for name in expected if after.get(name) != expected[name]]
        assert different == [], f"{different} differ: {where}"
        more = [name for name in after if name not in expected and ".partial" not in name]
        assert more == [], f"{more} are new: {where}"


def restore(folder: Path, backup: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(backup, folder, dirs_exist_ok=True)
