"""Which folder a run writes into, who is at work there, and where checkpoints lie."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from worldlm.topology.checks import shorten
from worldlm.topology.errors import UserError, suggest

LOCK = ".lock"
"""In a run's folder: held by the run that writes there, and given up by the system when that ends, however it ends."""

LAST = "checkpoints/last.ckpt"
CONFIG = "config.yaml"
"""All settings of a run, as LightningCLI writes them."""
_KEPT = "checkpoints/round_{}.ckpt"


def check_name(name: str) -> str:
    """Return the name of a run.

    Raises:
        UserError: If a folder of that name would not lie below another.
    """
    if "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).parts:
        raise UserError([f"name must be that of a folder below runs, but is {shorten(repr(name))}"])
    return name


def find_checkpoint(ckpt_path: str | None, runs: Path) -> Path | None:
    """Find the checkpoint a run starts from.

    Args:
        ckpt_path: A file, `last` for the last one of any run in the folder, or None.
        runs: Folder of the recipe's runs.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if ckpt_path is None:
        return None
    if ckpt_path != "last":
        if not Path(ckpt_path).is_file():
            raise FileNotFoundError(f"no checkpoint at {ckpt_path}; --ckpt_path takes a file, or last")
        return Path(ckpt_path)
    found = sorted(runs.glob("version_*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        print(f"worldlm: no checkpoint under {runs} yet: starting from the beginning", file=sys.stderr)
    return found[-1] if found else None


def find_version(checkpoint: Path | None, runs: Path) -> int:
    """Return the number of the run's folder: that of the run that goes on, else a new one."""
    numbers = {int(p.name[8:]): p for p in runs.glob("version_*") if p.name[8:].isdigit()}
    for number, folder in numbers.items():
        if checkpoint is not None and checkpoint.is_relative_to(folder):
            return number
    return max(numbers, default=-1) + 1


def find_run(run: str | Path) -> Path:
    """Find the folder of a run that has a checkpoint.

    Args:
        run: The folder itself, such as `runs/NAME/version_0`, or that of all versions, of which the last one that has
            a checkpoint is taken.

    Raises:
        UserError: If there is none.
    """
    folder = Path(run).expanduser()
    if list(folder.glob("checkpoints/*.ckpt")):
        return folder
    versions = {path.parents[1] for path in folder.glob("version_*/checkpoints/*.ckpt")}
    numbered = [path for path in versions if path.name[8:].isdigit()]
    if numbered:
        return max(numbered, key=lambda path: int(path.name[8:]))
    if folder.is_dir():
        told = f"no run with a checkpoint in {folder}"
    else:
        siblings = [path.name for path in folder.parent.glob("*/")] if folder.parent.is_dir() else []
        told = f"no run at {folder}{suggest(folder.name, siblings)}"
    raise UserError([f"{told}: name a run's folder, such as runs/NAME or runs/NAME/version_N"])


def find_saved(folder: Path, round_: int | None = None) -> Path:
    """Find a checkpoint in the folder of a run.

    Args:
        folder: As `find_run` gives it.
        round_: The last round that is in it, from 1; None for the last checkpoint there is.

    Raises:
        UserError: If it was not kept, with the rounds that were.
    """
    kept = {int(path.stem[6:]): path for path in folder.glob(_KEPT.format("*")) if path.stem[6:].isdigit()}
    last, numbers = folder / LAST, ", ".join(map(str, sorted(kept)))
    if round_ is None and (last.is_file() or kept):
        return last if last.is_file() else kept[max(kept)]
    if round_ in kept:
        return kept[round_]
    told = f"kept are {numbers}, and the last one" if kept else "only the last one is there"
    wanted = "no last.ckpt is there" if round_ is None else f"round {round_} was not kept; {told}"
    raise UserError([f"{folder}: {wanted} (LastCheckpoint keeps others with keep_every_n_rounds)"])


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Hold a run's folder while a run writes into it, without what a killed one had half written there.

    Where nothing came of a run, its folder is not left behind empty.

    Args:
        folder: The run's folder, which need not exist.

    Raises:
        UserError: If another run is at work there, or the folder cannot be made.
    """
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError([f"the run's folder {folder} cannot be made: {error.strerror}"]) from error
    with ExitStack() as held:
        try:
            # whoever looks whether it is held, holds it for a moment
            held.enter_context(FileLock(folder / LOCK).acquire(timeout=1.0))
            for left in folder.rglob(".*.partial"):  # by a run that was killed while it wrote
                if left.is_file():
                    left.unlink()
        except Timeout:
            raise UserError([f"another worldlm fit is at work in {folder}: wait for it, or stop it first"]) from None
        except (OSError, NotImplementedError):  # a file system without locks, or somebody else's file
            pass
        try:
            yield
        finally:
            if new and folder.is_dir() and os.listdir(folder) == [LOCK]:
                (folder / LOCK).unlink()
                folder.rmdir()


def is_at_work(folder: Path) -> bool:
    """Whether a run, of any process, writes into a folder now; no where that cannot be found out."""
    if not (folder / LOCK).is_file():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False
