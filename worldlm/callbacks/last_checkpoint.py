"""The checkpoint a run continues from."""

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
from worldlm.trainer import WorldTrainer

log = logging.getLogger(__name__)


class LastCheckpoint(Checkpoint):
    """Keeps one `checkpoints/last.ckpt` in the run's folder: the whole world, as it last stood.

    Where a run goes on from there with another topology, the world as it was stays beside it, as `until_round_N.ckpt`:
    what left is in no other.

    Written at the end of rounds, between steps once enough time has gone by, and on SIGTERM; where several processes
    share the world, at the end of rounds only. Some rounds' may be kept beside it, as `checkpoints/round_N.ckpt`.

    Args:
        every_n_rounds: Rounds between two checkpoints.
        every_n_minutes: Minutes after which one is written between two steps, in rounds that take long.
        keep_every_n_rounds: Keep the checkpoint of every so many rounds for good; by default of none.

    Raises:
        ValueError: If every_n_rounds or keep_every_n_rounds is below 1 or every_n_minutes is not above 0.
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
        """Return where the checkpoint of a run lies."""
        return trainer.folder / "checkpoints" / "last.ckpt"

    def _save(self, trainer: WorldTrainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # leaves nothing behind
        trainer.save_checkpoint(self.path(trainer), weights_only=False)
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        self._saved_at = time.monotonic()
        path, world = self.path(trainer), trainer.world
        goes_on = trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve() == path.resolve()
        if world.changes and goes_on and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            kept = path.with_name(f"until_round_{world.changed_after}.ckpt")
            keep(path, kept.name)
            log.info("the world as it was stays in %s", kept)

    def on_train_batch_end(self, trainer: WorldTrainer, *args: Any) -> None:  # type: ignore[override]
        if trainer.num_ranks == 1 and time.monotonic() - self._saved_at > 60 * self.every_n_minutes:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        finished = trainer.world.round + 1
        keeps = self.keep_every_n_rounds is not None and finished % self.keep_every_n_rounds == 0
        is_last = finished == trainer.max_epochs or trainer.should_stop or trainer.stop_after_round
        if keeps or is_last or finished % self.every_n_rounds == 0:
            self._save(trainer)
        if keeps and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            keep(self.path(trainer), f"round_{finished}.ckpt")

    def on_exception(  # type: ignore[override]
        self, trainer: WorldTrainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        # raised between two steps, where everything is in order if all of the world is here
        if trainer.num_ranks == 1 and isinstance(exception, SIGTERMException):
            self._save(trainer)


def keep(path: Path, name: str) -> None:
    """Keep a file under another name too: one file on disk with two names, or a copy where there are no such."""
    with atomic_write(path.with_name(name)) as partial:
        try:
            os.link(path, partial)
        except OSError:
            shutil.copyfile(path, partial)
