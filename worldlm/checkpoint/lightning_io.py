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

_CURRENT, _IS_LAST = "current", "is_last_batch"
"""What Lightning's trackers count within one run of the epoch loop, which is one fit."""


def _without_current(progress: Any, within: bool = False) -> Any:
    """Return the state of a tracker in which the counts of the last fit are 0."""
    if isinstance(progress, dict):
        return {
            name: _without_current(value, within or name in (_CURRENT, _IS_LAST)) for name, value in progress.items()
        }
    return type(progress)() if within and isinstance(progress, int) else progress


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
    """Collects and restores a checkpoint as Lightning does, with the differences that its methods describe.

    If WorldLM would not have written a checkpoint, it is rejected with one line.
    """

    def dump_checkpoint(self, weights_only: bool | None = None) -> dict[str, Any]:
        """Return the content of a checkpoint, which does not depend on the number of processes.

        The optimizer and the counts of the last fit of process 0 are left out. The loop saves the optimizers of all
        nodes, and a fit begins with new counts.
        """
        checkpoint: dict[str, Any] = super().dump_checkpoint(weights_only)
        for name in {"optimizer_states", "lr_schedulers"} & checkpoint.keys():
            checkpoint[name] = []
        loop = checkpoint["loops"]["fit_loop"]
        if loop["state_dict"].get("fitting") is False:
            checkpoint["loops"]["fit_loop"] = {
                name: _without_current(state) if name.startswith("epoch_loop.") else state
                for name, state in loop.items()
            }
        return checkpoint

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
