"""Which folder a run writes into, and which checkpoint it goes on from."""

from __future__ import annotations

import sys
from pathlib import Path


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
