"""The file of a noise key, which only its owner can read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from worldlm.federation.noise_key import KEY_BYTES, NoiseKey
from worldlm.files.atomic_write import write_secret
from worldlm.runs.folder import key_name

_HEADER = "worldlm noise key, secret: "
_SIZE = len(_HEADER) + 2 * KEY_BYTES + 1


def find_key(fingerprint: str, folders: Iterable[Path]) -> Path | None:
    """Return the file of a key in the first folder that has it, or None."""
    paths = (folder / key_name(fingerprint) for folder in folders)
    return next((path for path in paths if os.path.lexists(path)), None)


def write_key(key: NoiseKey, path: Path) -> None:
    """Write a key to a new file with mode 0600.

    Raises:
        ValueError: If the file exists or cannot be written, or the file system does not keep its mode.
    """
    try:
        write_secret(path, f"{_HEADER}{key.reveal()}\n".encode())
    except OSError as error:
        raise ValueError(f"the noise key cannot be written to {path}: {error.strerror}") from error
    read_key(path)


def read_key(path: Path) -> NoiseKey:
    """Read a key.

    Raises:
        ValueError: If it cannot be read, is not a key, or if other users can read it too.
    """
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # opening a FIFO would wait for a writer
        with os.fdopen(file, "rb") as stream:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"the noise key {path} is not a regular file")
            _check_owner(path, status)
            text = stream.read(_SIZE + 1).decode("ascii", "replace")
    except OSError as error:
        raise ValueError(f"the noise key {path} cannot be read: {error.strerror}") from error
    try:
        return NoiseKey(bytes.fromhex(text.strip().removeprefix(_HEADER)))
    except ValueError as error:
        raise ValueError(f"{path} is not a noise key: WorldLM writes such files itself") from error


def _check_owner(path: Path, status: os.stat_result) -> None:
    if os.name != "posix":
        return
    if status.st_uid not in (0, os.geteuid()):
        raise ValueError(f"the noise key {path} belongs to another user, who can read it: use a key of your own")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise ValueError(
            f"other users can read the noise key {path}, whose mode is {mode:04o}: if none has read it, run "
            f"chmod 600 {path}; otherwise delete it, and WorldLM makes a new one"
        )
