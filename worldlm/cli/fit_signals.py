"""What signals do during a fit."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from worldlm.cli.signals import Handler, stop
from worldlm.trainer import WorldTrainer


def handlers(trainer: WorldTrainer) -> dict[signal.Signals, Handler]:
    """Return the handlers of a fit. While it trains, Lightning handles SIGTERM first: it stops between two steps."""

    def terminate(signum: int, frame: FrameType | None) -> None:
        if not trainer.received_sigterm:
            stop(signum, frame)

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if not trainer.training:
            stop(signum, frame)
        signal.signal(signal.SIGINT, stop)  # the next Ctrl-C stops at once
        if trainer.num_ranks == 1:
            print("\nstopping after this step; Ctrl-C again stops at once, without a checkpoint", file=sys.stderr)
        elif trainer.is_global_zero:
            print("\nstopping; the work since the last finished round is lost", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGTERM)

    def hang_up(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    return {signal.SIGINT: interrupt, signal.SIGTERM: terminate, signal.SIGHUP: hang_up}
