"""Writes files atomically: a file is never incomplete."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from worldlm.files.regular import is_special
from worldlm.topology.errors import UserError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside a file, which replaces the file at the end.

    If the process is killed meanwhile, `.NAME.PID.partial` remains.

    Args:
        path: The file. Its folder is made if there is none.

    Raises:
        OSError: If the file cannot be written; it names the file, whose old content remains.
        UserError: If a pipe or a device is in its place.
    """
    if is_special(path):
        raise UserError([f"{path}: is not a regular file but a pipe or a device"])
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, partial, str(partial)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):  # such as that there is no such folder, which is reported already
            partial.unlink()


def write_secret(path: Path, content: bytes) -> None:
    """Write a new file that only its owner can read, and wait until it and its name are on disk.

    Raises:
        OSError: If the file exists, or cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk, so that they survive a loss of power."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_write(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str | Iterable[str], errors: str = "strict", *, to_disk: bool = False) -> None:
    """Write a text file atomically, in UTF-8.

    Args:
        path: The file.
        text: Its content, or the parts of a content that is too large for memory.
        errors: How to treat characters that cannot be encoded, as in `str.encode`.
        to_disk: Whether to wait until the content is on disk, so that it survives a loss of power.
    """
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8", errors=errors) as file:
        file.writelines([text] if isinstance(text, str) else text)
        if to_disk:
            file.flush()
            os.fsync(file.fileno())
