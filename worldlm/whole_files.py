"""Files that are whole or not there."""

import os
from pathlib import Path


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write a file: at any moment `path` is the old one or the new one.

    Args:
        path: The file; its folder is made if it is not there.
        text: Its content, in UTF-8.
        errors: What becomes of what cannot be encoded, as of `str.encode`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, "utf-8", errors=errors)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
