"""Lightning's plugin and connector for checkpoints, on top of `write.py` and `read.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector

from worldlm.checkpoint.read import as_written, read_checkpoint
from worldlm.checkpoint.validate import check_progress
from worldlm.checkpoint.write import save_checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, and always reads them with `weights_only=True`.

    Args:
        mapped: Whether to map a file into memory instead of reading all of it. Unused parts are then not read.
    """

    def __init__(self, *, mapped: bool = False) -> None:
        self.mapped = mapped

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint, as `worldlm.checkpoint.write.save_checkpoint`.

        Raises:
            OSError: If the file cannot be written. The error names the file, and the old file stays.
        """
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | str | None = "cpu",
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Read a checkpoint. `weights_only` cannot be switched off.

        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If the file is not a complete checkpoint of a model, or if it contains anything but tensors and
                plain values.
        """
        return read_checkpoint(path, mapped=self.mapped)


class CheckpointConnector(_CheckpointConnector):
    """Restores a checkpoint as Lightning does, with an error of one line if WorldLM would not have written it."""

    def _restore_modules_and_callbacks(self, checkpoint_path: Any = None, weights_only: bool | None = None) -> None:
        with as_written(checkpoint_path):
            super()._restore_modules_and_callbacks(checkpoint_path, weights_only)

    def restore_training_state(self) -> None:
        """Restore the loops and the state of the precision plugin.

        Raises:
            ValueError: If their content is not what WorldLM writes.
        """
        with as_written(self._ckpt_path):
            check_progress(self._loaded_checkpoint.get("loops", {}).get("fit_loop", {}))
            super().restore_training_state()
