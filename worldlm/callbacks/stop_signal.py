"""SIGUSR1: a run that stops where nothing is lost, to go on later."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.exceptions import SIGTERMException

from worldlm.trainer import WorldTrainer


class StopSignal(Callback):
    """Stops a run on SIGUSR1 where nothing of it is lost; a scheduler sends it some time before it kills.

    One process saves between two steps, as on SIGTERM. Several finish the round first, at whose end alone they can
    save: SIGTERM, which may follow, loses what was done since the last one.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: Any = None

    def setup(self, trainer: WorldTrainer, pl_module: LightningModule, stage: str) -> None:  # type: ignore[override]
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGUSR1, lambda *_: self._ask(trainer))

    def teardown(self, trainer: WorldTrainer, pl_module: LightningModule, stage: str) -> None:  # type: ignore[override]
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)
            self._before = None

    def _ask(self, trainer: WorldTrainer) -> None:
        self._asked = True
        if trainer.num_ranks == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_epoch_end(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        if trainer.num_ranks > 1:
            trainer.stop_after_round = trainer.strategy.reduce_boolean_decision(self._asked, all=False)

    def on_train_epoch_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        if trainer.stop_after_round:
            raise SIGTERMException
