"""Checkpoints that are whole or not there, and that execute nothing when read."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to the disk, and renames; reads with `weights_only=True` always."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint: at any moment `path` is the old file or the new one."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

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
        if not Path(path).is_file():
            raise FileNotFoundError(f"no checkpoint at {path}")
        try:
            checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # what a reader stumbles over in a foreign file is anybody's guess
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"{path} cannot be read as a checkpoint: {reason}") from error
        if not (isinstance(checkpoint, dict) and {"state_dict", "loops"} <= checkpoint.keys()):
            raise ValueError(f"{path} cannot be read as a checkpoint: it is not one that a trainer saved")
        return checkpoint
