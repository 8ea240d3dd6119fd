"""Files that are whole or not there."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Lend a path beside a file to write to, which takes the file's place at the end: `path` is the old one or the new.

    Where a process was killed meanwhile, `.NAME.PID.partial` is left.

    Args:
        path: The file; its folder is made if it is not there.

    Raises:
        OSError: If it cannot be written, with its name; the old file stays.
    """
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
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str | Iterable[str], errors: str = "strict", *, to_disk: bool = False) -> None:
    """Write a file of text, as `atomic_write`.

    Args:
        path: The file.
        text: Its content, in UTF-8; or that piece by piece, so that it is never in memory as a whole.
        errors: What becomes of what cannot be encoded, as of `str.encode`.
        to_disk: Whether to wait until the disk has it, so that it outlives a loss of power.
    """
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8", errors=errors) as file:
        file.writelines([text] if isinstance(text, str) else text)
        if to_disk:
            file.flush()
            os.fsync(file.fileno())
