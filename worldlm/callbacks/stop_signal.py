"""Stops a run on SIGUSR1 so that it can resume without losing work."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.exceptions import SIGTERMException

from worldlm.trainer import WorldTrainer


class StopSignal(Callback):
    """Stops a run on SIGUSR1 at a point where it can be saved; a scheduler sends the signal before it kills the run.

    A run of one process saves a checkpoint between two steps, as on SIGTERM. Several processes can save at the end of a
    round only, so they finish the round first. If SIGTERM follows earlier, the work since the last round is lost.
    """

    def __init__(self) -> None:
        self._requested = False
        self._before: Any = None

    def setup(self, trainer: WorldTrainer, pl_module: LightningModule, stage: str) -> None:  # type: ignore[override]
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGUSR1, lambda *_: self._stop(trainer))

    def teardown(self, trainer: WorldTrainer, pl_module: LightningModule, stage: str) -> None:  # type: ignore[override]
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)
            self._before = None

    def _stop(self, trainer: WorldTrainer) -> None:
        self._requested = True
        if trainer.run_settings.saves_within_round:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_epoch_end(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        if not trainer.run_settings.saves_within_round:
            trainer.stop_after_round = trainer.strategy.reduce_boolean_decision(self._requested, all=False)

    def on_train_epoch_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        if trainer.stop_after_round:
            raise SIGTERMException
