"""Finds the commit of a folder's files in git."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_SECONDS = 5.0
"""Most seconds that a call of git may take."""


def commit_of(folder: Path) -> str | None:
    """Return the commit that is checked out in a folder: `HASH`, or `HASH-dirty` if tracked files changed.

    It runs no hooks, writes nothing, and waits for a few seconds at most.

    Returns:
        None without git, without a repository or a commit, or if git takes too long.
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return None if not commit or changed is None else f"{commit}{'-dirty' if changed else ''}"


def _git(folder: Path, *arguments: str) -> str | None:
    # GIT_ variables may name another repository
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    quiet = ["--no-optional-locks", "-c", f"core.hooksPath={os.devnull}", "-c", "core.fsmonitor=false"]
    try:
        done = subprocess.run(
            ["git", *quiet, *arguments],
            cwd=folder,
            env=environment,
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
