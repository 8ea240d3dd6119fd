"""Checkpoints that are whole or not there, and that execute nothing when read."""

from __future__ import annotations

import os
from collections.abc import Callable
from io import BufferedWriter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector

from worldlm.checkpoint.read import as_written, read_checkpoint
from worldlm.files.atomic_write import atomic_write
from worldlm.storage.page_files import forget

if TYPE_CHECKING:
    from typing_extensions import Buffer


class _Forgetful(BufferedWriter):
    """A file that gives back, every 64 MB, the memory of what was read from disk to be written into it."""

    _written = 0

    def write(self, content: Buffer, /) -> int:
        self._written += memoryview(content).nbytes
        if self._written >= 64_000_000:
            self._written = 0
            forget()
        return super().write(content)


def _save(checkpoint: dict[str, Any], file: BufferedWriter) -> None:
    """Write a checkpoint; torch has words of its own about a file that the disk did not take."""
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to the disk, and renames; reads with `weights_only=True` always.

    Args:
        mapped: Whether to map a file into memory instead of reading it whole: what is not used is not read.
    """

    def __init__(self, *, mapped: bool = False) -> None:
        self.mapped = mapped

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint: at any moment `path` is the old file or the new one.

        Raises:
            OSError: If it cannot be written, with its name; the old one stays.
        """
        with atomic_write(Path(path)) as partial, _Forgetful(partial.open("wb", buffering=0)) as file:
            _save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | str | None = "cpu",
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Read a checkpoint; `weights_only` is not negotiable.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not a whole checkpoint of a model, or holds anything but tensors and plain values.
        """
        return read_checkpoint(path, mapped=self.mapped)


class CheckpointConnector(_CheckpointConnector):
    """Restores what a checkpoint holds as Lightning does, and says in a line where that is not as it was written."""

    def _restore_modules_and_callbacks(self, checkpoint_path: Any = None, weights_only: bool | None = None) -> None:
        with as_written(checkpoint_path):
            super()._restore_modules_and_callbacks(checkpoint_path, weights_only)

    def restore_training_state(self) -> None:
        """Restore the loops and what the precision keeps.

        Raises:
            ValueError: If they are not as they were written.
        """
        with as_written(self._ckpt_path):
            for name, kept in self._loaded_checkpoint.get("loops", {}).get("fit_loop", {}).items():
                if name.endswith("progress") and not _counts(kept):
                    raise TypeError(f"{name} of the loop does not count")
            super().restore_training_state()


def _counts(progress: Any) -> bool:
    """Whether something is what Lightning's progress trackers save: numbers, within dicts at any depth."""
    return all(map(_counts, progress.values())) if isinstance(progress, dict) else isinstance(progress, int)
