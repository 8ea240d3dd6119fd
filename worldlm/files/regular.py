"""Refuses pipes, devices and links to nowhere before they are opened."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from worldlm.topology.errors import UserError


def check_regular(path: Path) -> Path:
    """Check that a path is not a pipe or a device, which may block for ever, nor a link to nowhere.

    Args:
        path: A file that is about to be read. Links are followed.

    Returns:
        The path. A file that is missing or a folder, for which opening fails, is returned too.

    Raises:
        UserError: If it is no regular file, or a link whose target does not exist.
    """
    if is_special(path):
        raise UserError([f"{path}: is not a regular file but a pipe or a device"])
    return check_link(path)


def check_link(path: Path) -> Path:
    """Check that a file or a folder is not a link to nowhere, and return it.

    Raises:
        UserError: If it is a link whose target does not exist.
    """
    if path.is_symlink() and not path.exists():
        raise UserError([f"{path}: is a link to {os.readlink(path)}, which does not exist"])
    return path


def is_special(path: Path) -> bool:
    """Return whether a path is a pipe, a device or a socket. Links are followed."""
    try:
        kind = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(kind) or stat.S_ISDIR(kind))
