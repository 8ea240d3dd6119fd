"""Refuses pipes and devices before they are opened: reading or writing one may block for ever."""

from __future__ import annotations

import stat
from pathlib import Path

from worldlm.topology.errors import UserError


def check_regular(path: Path) -> Path:
    """Check that a path is not a pipe, a device or a socket.

    Args:
        path: A file that is about to be read or written over. Links are followed.

    Returns:
        The path. A file that is missing or a folder, for which opening fails, is returned too.

    Raises:
        UserError: If it is no regular file.
    """
    try:
        kind = path.stat().st_mode
    except OSError:
        return path
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise UserError([f"{path}: is not a regular file but a pipe or a device"])
    return path
