"""Writes the checkpoint from which a run resumes."""

import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from worldlm.files.atomic_write import atomic_write
from worldlm.runs.lock import check_held
from worldlm.trainer import WorldTrainer

log = logging.getLogger(__name__)


class LastCheckpoint(Checkpoint):
    """Writes the latest state of the whole world to `checkpoints/last.ckpt` in the run folder.

    It is written at the end of rounds, after a training batch when enough time has passed, and on SIGTERM. If several
    processes share the world, or an organisation runs one of its nodes, it is written at the end of rounds only. An
    organisation then deletes the messages whose effect the checkpoint contains. The checkpoints of some rounds can be
    kept beside it, as `checkpoints/round_N.ckpt`.

    If a run resumes from `last.ckpt` with another topology, the old checkpoint is kept as `until_round_N.ckpt`. It
    still contains the departed nodes, which no later checkpoint does.

    Args:
        every_n_rounds: Rounds between two checkpoints, at least 1.
        every_n_minutes: In long rounds, minutes after which a checkpoint is written after a training batch; above 0.
        keep_every_n_rounds: Keep the checkpoint of every n-th round, at least 1. None keeps none.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self, every_n_rounds: int = 1, every_n_minutes: float = 10.0, keep_every_n_rounds: int | None = None
    ) -> None:
        if every_n_rounds < 1 or not every_n_minutes > 0:
            raise ValueError(
                f"every_n_rounds must be at least 1, got {every_n_rounds}, "
                f"and every_n_minutes above 0, got {every_n_minutes}"
            )
        if keep_every_n_rounds is not None and keep_every_n_rounds < 1:
            raise ValueError(f"keep_every_n_rounds must be at least 1, or null to keep none, got {keep_every_n_rounds}")
        self.every_n_rounds = every_n_rounds
        self.every_n_minutes = every_n_minutes
        self.keep_every_n_rounds = keep_every_n_rounds
        self._saved_at = time.monotonic()

    @staticmethod
    def path(trainer: WorldTrainer) -> Path:
        """Return the path of a run's checkpoint."""
        return trainer.folder / "checkpoints" / "last.ckpt"

    def _save(self, trainer: WorldTrainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # a trial run writes no files
        check_held(trainer.folder)
        trainer.save_checkpoint(self.path(trainer), weights_only=False)
        if trainer.run_settings.organisation is not None:
            trainer.run_settings.organisation.forget(trainer.world.round + 1)  # only the end of a round can be saved
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        self._saved_at = time.monotonic()
        path, world = self.path(trainer), trainer.world
        is_resumed = trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve() == path.resolve()
        if world.changes and is_resumed and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            old = path.with_name(f"until_round_{world.changed_after}.ckpt")
            keep(path, old.name)
            log.info("the checkpoint before the topology change is kept as %s", old)

    def on_train_batch_end(self, trainer: WorldTrainer, *args: Any) -> None:  # type: ignore[override]
        if trainer.run_settings.saves_within_round and time.monotonic() - self._saved_at > 60 * self.every_n_minutes:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        finished = trainer.world.round + 1
        is_kept = self.keep_every_n_rounds is not None and finished % self.keep_every_n_rounds == 0
        is_last = finished == trainer.max_epochs or trainer.should_stop or trainer.stop_after_round
        organisation = trainer.run_settings.organisation
        is_last = is_last or (organisation is not None and organisation.may_change)  # the last of this topology
        if is_kept or is_last or finished % self.every_n_rounds == 0:
            self._save(trainer)
        if is_kept and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            keep(self.path(trainer), f"round_{finished}.ckpt")

    def on_exception(  # type: ignore[override]
        self, trainer: WorldTrainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        # raised between two steps: the state is consistent if this process holds all nodes
        if trainer.run_settings.saves_within_round and isinstance(exception, SIGTERMException):
            self._save(trainer)


def keep(path: Path, name: str) -> None:
    """Keep a file under a second name: a hard link, or a copy where the file system has no hard links."""
    with atomic_write(path.with_name(name)) as partial:
        try:
            os.link(path.resolve(), partial)
        except OSError:
            shutil.copyfile(path, partial)
