"""The folder of a run: its name, its number, and its checkpoints."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from worldlm.files.atomic_write import write_text
from worldlm.files.regular import check_link, check_regular
from worldlm.topology.checks import shorten
from worldlm.topology.errors import UserError, suggest

STARTS = ".starts"
"""File in the folder of all versions: their names, one a line, in the order in which each was started last."""

CHECKPOINTS = "checkpoints"
LAST = f"{CHECKPOINTS}/last.ckpt"
CONFIG = "config.yaml"
"""All settings of a run, as LightningCLI writes them."""
_MAX_NAME_BYTES = 255
_KEPT_CHECKPOINT = CHECKPOINTS + "/round_{}.ckpt"


def key_name(fingerprint: str) -> str:
    """Return the name of the file of a noise key in the folder of a run."""
    return f"noise-{fingerprint}.key"


def check_name(name: str) -> str:
    """Check and return the name of a run.

    Raises:
        UserError: If it is not the name of a folder below the folder of all runs, or `worldlm runs` would not list it.
    """
    parts = Path(name).parts
    if not name.isprintable() or Path(name).is_absolute() or ".." in parts or not parts:
        raise UserError([f"name must be that of a folder below runs, but is {shorten(repr(name))}"])
    if any(part.startswith(".") or _is_version(part) or len(part.encode()) > _MAX_NAME_BYTES for part in parts):
        reasons = f"begin with a dot, be version_N, or be longer than {_MAX_NAME_BYTES} bytes"
        raise UserError([f"name is {shorten(repr(name))}, but no folder in it may {reasons}"])
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


def forget_start(folder: Path) -> None:
    """Leave a run that wrote nothing out of the order of starts."""
    others = [name for name in _starts(folder.parent) if name != folder.name]
    if others:
        write_text(folder.parent / STARTS, "".join(f"{name}\n" for name in others))
    else:
        (folder.parent / STARTS).unlink(missing_ok=True)


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


def find_folder(checkpoint: Path | None, runs: Path) -> Path | None:
    """Return the folder in which a run continues: the version that contains the checkpoint; None if it is a new run."""
    if checkpoint is None:
        return None
    for folder in runs.glob("version_*"):
        within = checkpoint.is_relative_to(folder) or checkpoint.parent.resolve() == (folder / CHECKPOINTS).resolve()
        if _is_version(folder.name) and within:
            return folder
    return None


def make_folder(runs: Path) -> Path:
    """Make and return the folder of a new run, the next version. No other process gets the same.

    Raises:
        UserError: If it cannot be made.
    """
    number = max((int(path.name[8:]) for path in runs.glob("version_*") if _is_version(path.name)), default=-1) + 1
    try:
        runs.mkdir(parents=True, exist_ok=True)
        while True:
            folder = runs / f"version_{number}"
            with suppress(FileExistsError):  # another run was faster
                folder.mkdir()
                return folder
            number += 1
    except OSError as error:
        raise UserError([f"the folder {runs} for runs cannot be made: {error.strerror}"]) from error


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
