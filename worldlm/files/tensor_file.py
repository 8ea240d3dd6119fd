"""Reads files of tensors from others: nothing in them is executed, and damage is found."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch


def read_tensors(path: Path, *, mapped: bool = False) -> Any:
    """Read what `torch.save` wrote: plain containers and tensors. Nothing in the file is executed.

    Args:
        path: The file.
        mapped: Whether to map the file into memory instead of reading all of it. Unused parts are then not read.

    Raises:
        ValueError: If the file is damaged or compressed.
        Exception: Of any type, if the file was not written by `torch.save`, or contains anything else.
    """
    _verify_checksums(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _verify_checksums(path: Path) -> None:
    """Verify the checksums in a file of tensors, which `torch.load` ignores.

    Raises:
        ValueError: If a checksum differs, the file is compressed, or an entry has attributes. `torch.load` reads
            nothing from an entry that is marked as a folder, and leaves its tensor uninitialised.
    """
    if not zipfile.is_zipfile(path):
        return  # `torch.load` reports truncated and foreign files
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed, which torch never does: its content could have any size")
        if marked := [entry.filename for entry in entries if entry.external_attr or entry.is_dir()]:
            raise ValueError(f"it is damaged: {marked[0]} has attributes of a file or folder, which torch never writes")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"it is damaged: the checksum of {damaged} differs")
