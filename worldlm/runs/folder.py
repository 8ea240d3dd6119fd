"""The folder of a run: its name, its lock, and its checkpoints."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from worldlm.files.atomic_write import write_text
from worldlm.files.regular import check_link, check_regular, is_special
from worldlm.topology.checks import shorten
from worldlm.topology.errors import UserError, suggest

LOCK = ".lock"
"""Lock file in a run's folder. The run that writes there holds it; the system releases it when the process ends."""

STARTS = ".starts"
"""File in the folder of all versions: their names, one a line, in the order in which each was started last."""

CHECKPOINTS = "checkpoints"
LAST = f"{CHECKPOINTS}/last.ckpt"
CONFIG = "config.yaml"
"""All settings of a run, as LightningCLI writes them."""
_WRITTEN_ONCE = (CONFIG, "tokenizer.json")
_KEPT_CHECKPOINT = CHECKPOINTS + "/round_{}.ckpt"


def key_name(fingerprint: str) -> str:
    """Return the name of the file of a noise key in the folder of a run."""
    return f"noise-{fingerprint}.key"


def check_name(name: str) -> str:
    """Check and return the name of a run.

    Raises:
        UserError: If it is not the name of a folder below the folder of all runs.
    """
    if "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).parts:
        raise UserError([f"name must be that of a folder below runs, but is {shorten(repr(name))}"])
    return name


def find_checkpoint(ckpt_path: str | None, runs: Path) -> Path | None:
    """Find the checkpoint that a run continues from.

    Args:
        ckpt_path: A file, `last` for that of the run in the folder that was started last, or None.
        runs: Folder of the recipe's runs.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if ckpt_path is None:
        return None
    if str(ckpt_path) != "last":
        if not check_regular(Path(ckpt_path)).is_file():
            raise FileNotFoundError(f"ckpt_path: no checkpoint at {ckpt_path}; write a file, or last")
        return Path(ckpt_path)
    starts = _starts(runs)
    places = [check_link(check_link(version) / CHECKPOINTS) / "last.ckpt" for version in runs.glob("version_*")]
    found = [path for path in places if check_regular(path).is_file()]
    if not found:
        print(f"worldlm: no checkpoint under {runs} yet: starting from the beginning", file=sys.stderr)
    return max(found, key=lambda path: _position(path.parents[1].name, starts), default=None)


def note_start(folder: Path) -> None:
    """Record that a run is started now: it becomes the last of all versions in its folder.

    The times of files would change when they are copied.

    Raises:
        OSError: If the order cannot be written.
    """
    if not _is_version(folder.name):
        return
    starts = _starts(folder.parent)
    if starts[-1:] == [folder.name]:
        return
    others = [name for name in starts if name != folder.name]
    write_text(folder.parent / STARTS, "".join(f"{name}\n" for name in (*others, folder.name)), to_disk=True)


def _starts(runs: Path) -> list[str]:
    """Return the versions in the order in which they were started last; none if it was not recorded."""
    try:
        return (runs / STARTS).read_text("utf-8").split()
    except (OSError, UnicodeDecodeError):
        return []


def _position(name: str, starts: Sequence[str]) -> tuple[int, int]:
    """Return a key that sorts versions. Those whose start was not recorded come first, by their numbers."""
    return starts.index(name) if name in starts else -1, int(name[8:]) if _is_version(name) else -1


def _is_version(name: str) -> bool:
    return name.startswith("version_") and name[8:].isdecimal()


def find_version(checkpoint: Path | None, runs: Path) -> int:
    """Return the version number of a run: that of the run which continues, else a new one."""
    numbers = {int(p.name[8:]): p for p in runs.glob("version_*") if p.name[8:].isdecimal()}
    for number, folder in numbers.items():
        if checkpoint is None:
            break
        if checkpoint.is_relative_to(folder) or checkpoint.parent.resolve() == (folder / CHECKPOINTS).resolve():
            return number
    return max(numbers, default=-1) + 1


def find_run(run: str | Path) -> Path:
    """Find the folder of a run that has a checkpoint.

    Args:
        run: The folder itself, such as `runs/NAME/version_0`, or the folder of all versions. In this case, the last
            version with a checkpoint is chosen.

    Raises:
        UserError: If there is no such run.
    """
    folder = check_link(Path(os.path.expanduser(run)))
    check_link(folder / CHECKPOINTS)
    if list(folder.glob("checkpoints/*.ckpt")):
        return folder
    versions = {path.parents[1] for path in folder.glob("version_*/checkpoints/*.ckpt")}
    numbered = [path for path in versions if path.name[8:].isdecimal()]
    if numbered:
        return max(numbered, key=lambda path: int(path.name[8:]))
    if folder.is_dir():
        problem = f"no run with a checkpoint in {folder}"
    else:
        siblings = [path.name for path in folder.parent.glob("*/")] if folder.parent.is_dir() else []
        problem = f"no run at {folder}{suggest(folder.name, siblings)}"
    raise UserError([f"{problem}: name a run's folder, such as runs/NAME or runs/NAME/version_N"])


def find_saved(folder: Path, round_: int | None = None) -> Path:
    """Find a checkpoint in the folder of a run.

    Args:
        folder: The run's folder, as `find_run` returns it.
        round_: The round after which it was saved, from 1; None for the last checkpoint.

    Raises:
        UserError: If it was not kept. The message names the rounds that were.
    """
    saved = {
        int(path.stem[6:]): path for path in folder.glob(_KEPT_CHECKPOINT.format("*")) if path.stem[6:].isdecimal()
    }
    last, numbers = check_regular(folder / LAST), ", ".join(map(str, sorted(saved)))
    if round_ is None and (last.is_file() or saved):
        return last if last.is_file() else saved[max(saved)]
    if round_ in saved:
        return saved[round_]
    available = f"there are {numbers}, and the last one" if saved else "there is only the last one"
    problem = "there is no last.ckpt" if round_ is None else f"round {round_} was not kept; {available}"
    raise UserError([f"{folder}: {problem} (LastCheckpoint keeps others with keep_every_n_rounds)"])


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
            if new and is_ours and os.listdir(folder) == [LOCK]:
                (folder / LOCK).unlink()
                folder.rmdir()


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
