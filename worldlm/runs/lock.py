"""The lock of a run's folder: one run at a time writes there, and ends if its folder is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from worldlm.files.regular import check_link, check_regular, is_special
from worldlm.runs.folder import CHECKPOINTS, CONFIG, forget_start, note_start
from worldlm.topology.errors import UserError

LOCK = ".lock"
"""Lock file in a run's folder. The run that writes there holds it; the system releases it when the process ends."""

_WRITTEN_ONCE = (CONFIG, "tokenizer.json")


class FolderLost(UserError):
    """The folder of a run, or a file in it that is written once, was removed, moved or replaced."""

    def __init__(self, folder: Path, what: str) -> None:
        lost = f"{folder} was removed, moved or replaced" if what == LOCK else f"{folder / what} was removed"
        super().__init__(
            [f"{lost} while the run wrote there, so the run has ended; if it was moved, move it back and resume"]
        )


@dataclass(slots=True)
class _Held:
    """A folder that this process writes to."""

    lock: tuple[int, int] | None
    """Device and inode of the lock; None on a file system without locks."""
    files: set[str] = field(default_factory=set)
    """Files that are written once and were seen."""


_held: dict[Path, _Held] = {}
"""By absolute path."""


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Lock a run's folder while the run writes to it. Partial files of a killed run are removed.

    A new folder is removed again if the run wrote nothing to it.

    Args:
        folder: The run's folder, which need not exist.

    Raises:
        UserError: If another run has the lock, the folder cannot be made, it contains pipes or devices, or it is a link
            to nowhere.
        FolderLost: If a file cannot be read or written, because the folder is gone.
    """
    new = not check_link(folder).exists()
    check_link(folder / CHECKPOINTS)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError([f"the run's folder {folder} cannot be made: {error.strerror}"]) from error
    if special := [path for path in _content(folder) if is_special(path)]:  # the run could write over one
        check_regular(special[0])
    with ExitStack() as locks:
        lock: tuple[int, int] | None = None
        try:
            # `is_at_work` holds the lock for a moment, so wait for it
            locks.enter_context(FileLock(folder / LOCK).acquire(timeout=1.0))
            lock = _identity(folder / LOCK)
            for path in _content(folder):
                if path.match(".*.partial") and path.is_file():  # of a run that was killed while it wrote
                    path.unlink()
        except Timeout:
            raise UserError([f"another worldlm fit is writing to {folder}: wait for it, or stop it first"]) from None
        except (OSError, NotImplementedError):  # a file system without locks, or a file of another user
            pass
        place = folder.absolute()
        _held[place] = _Held(lock)
        try:
            note_start(folder)
            yield
        except OSError as error:
            if lost := _lost(place):
                raise FolderLost(folder, lost) from error
            raise
        finally:
            is_ours = _lost(place) != LOCK
            del _held[place]
            if new and is_ours:
                remove_unused(folder)


def remove_unused(folder: Path, runs: Path | None = None) -> None:
    """Remove the new folder of a run that wrote nothing, and those above it that are then empty.

    Args:
        folder: The run's folder.
        runs: The highest folder that may be removed; by default the run's.
    """
    try:
        if os.listdir(folder) == [LOCK]:
            (folder / LOCK).unlink()
            forget_start(folder)
        for path in (folder, *folder.parents):
            path.rmdir()
            if path == (runs or folder):
                break
    except OSError:  # it is gone, or not empty
        pass


def _content(folder: Path) -> list[Path]:
    """Return all files and folders in a folder, also those of checkpoints that are kept elsewhere."""
    linked = [folder / CHECKPOINTS] if (folder / CHECKPOINTS).is_symlink() else []
    return [path for part in (folder, *linked) for path in part.rglob("*")]


def check_held(folder: Path) -> None:
    """Check, before something is written, that a run's folder is still the one that `at_work` locked.

    It does nothing if this process has not locked the folder.

    Raises:
        FolderLost: If the folder, its lock, its settings or its tokenizer was removed, moved or replaced.
    """
    if lost := _lost(folder.absolute()):
        raise FolderLost(folder, lost)


def _lost(place: Path) -> str:
    """Return the name of a file that was lost, the lock if the folder was; "" if there is none."""
    if place not in _held:
        return ""
    held = _held[place]
    try:
        # the lock stays open, so no other file can get its inode
        if not place.is_dir() if held.lock is None else _identity(place / LOCK) != held.lock:
            return LOCK
        present = {name for name in _WRITTEN_ONCE if (place / name).is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return LOCK
    except OSError:  # whatever is written next raises it too
        return ""
    missing, held.files = held.files - present, held.files | present
    return min(missing, default="")


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def is_at_work(folder: Path) -> bool:
    """Return whether a run of any process is writing to a folder; False if the lock cannot be read."""
    if not (folder / LOCK).is_file():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False
