"""Which commit a folder's files are of, where git keeps them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_SECONDS = 5.0
"""How long git may take to answer a question."""


def commit_of(folder: Path) -> str | None:
    """Return the commit that is checked out in a folder, or above it: `HASH`, or `HASH-dirty` if tracked files changed.

    Runs no hooks, writes nothing, and waits no longer than some seconds.

    Returns:
        None where there is no git, no repository, no commit yet, or no answer in time.
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return None if not commit or changed is None else f"{commit}{'-dirty' if changed else ''}"


def _git(folder: Path, *asked: str) -> str | None:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # they name another one
    quiet = ["--no-optional-locks", "-c", f"core.hooksPath={os.devnull}", "-c", "core.fsmonitor=false"]
    try:
        done = subprocess.run(
            ["git", *quiet, *asked],
            cwd=folder,
            env=ours,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
