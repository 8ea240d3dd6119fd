"""The folder of a trainer's run: when it is chosen, and what is written there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from worldlm.runs.folder import CHECKPOINTS, check_name, find_checkpoint, find_folder, make_folder
from worldlm.runs.lock import at_work, remove_unused

RUNS = "runs"
"""Folder of all runs."""


class RunFolder:
    """The folder of a run: a new `runs/NAME/version_N`, or that of the checkpoint from which the run resumes.

    It is chosen when it is first needed, since only `fit` knows the checkpoint.

    Args:
        trainer: Its `default_root_dir` contains `runs`.
        name: NAME.
    """

    def __init__(self, trainer: pl.Trainer, name: str) -> None:
        self._trainer = trainer
        self._name = name
        self._is_new = False  # whether this run made it
        self.chosen: Path | None = None
        """The folder; None before it is chosen, and in processes other than 0 before they agree."""

    @property
    def path(self) -> Path:
        """The folder, which is made if it is not chosen yet; in a trial, and in other processes then, the root."""
        if self.chosen is None and self._writes:
            self.chosen, self._is_new = make_folder(self._runs), True
        return self.chosen or Path(self._trainer.default_root_dir)

    def find_last(self, ckpt_path: Any) -> Any:
        """Return the checkpoint from which a fit resumes: `last` is that of the run that was started last."""
        return find_checkpoint(ckpt_path, self._runs) if ckpt_path == "last" else ckpt_path

    @contextmanager
    def locked(self, ckpt_path: Any) -> Iterator[None]:
        """Lock the folder during a fit, and let Lightning's own checkpoints be written there.

        Args:
            ckpt_path: The checkpoint from which the fit resumes, or None.

        Raises:
            UserError: As `worldlm.runs.lock.at_work`.
        """
        if not self._writes:
            yield
            return
        if self.chosen is None and ckpt_path is not None:
            self.chosen = find_folder(Path(ckpt_path), self._runs)
        for callback in self._trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(self.path / CHECKPOINTS)
        try:
            with at_work(self.path):
                yield
        finally:
            if self._is_new:
                remove_unused(self.path, self._runs.parent)

    def agree(self) -> Path:
        """Return the folder of process 0. All processes call this at the same point."""
        self.chosen = Path(self._trainer.strategy.broadcast(str(self.path)))
        return self.chosen

    @property
    def _writes(self) -> bool:
        trainer = self._trainer
        return trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]

    @property
    def _runs(self) -> Path:
        root = self._trainer.default_root_dir
        if "://" in root:
            raise ValueError(f"default_root_dir is {root}, but must be a local folder")
        return Path(root) / RUNS / check_name(self._name)


class RunLogger(TensorBoardLogger):
    """Lightning's TensorBoard logger, which writes into the folder of the run.

    Args:
        folder: Of the run. It is not chosen before something is logged.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(save_dir="", name="", version="", default_hp_metric=False)
        self._folder = folder

    @property
    def log_dir(self) -> str:
        """The folder of the run."""
        return str(self._folder.path)

    @property
    def save_dir(self) -> str:
        """The folder of the run."""
        return self.log_dir

    @property
    def root_dir(self) -> str:
        """The folder of the run."""
        return self.log_dir


def add_logger(options: dict[str, Any], folder: RunFolder) -> None:
    """Set the default logger in the options of a Trainer, unless the user sets another one or none."""
    if options.get("logger") is None or options["logger"] is True:
        options["logger"] = RunLogger(folder)
