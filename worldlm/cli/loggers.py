"""Loggers of a recipe: they write into the run's folder, unless the user sets their `save_dir`."""

from __future__ import annotations

import shlex
from argparse import Action
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger

IN_RUN_FOLDER = "<run folder>"
"""Begins the default of each `save_dir`. In config.yaml it stands for the folder of every run with these settings."""


def set_default_save_dir(kind: object, actions: Iterable[Action]) -> None:
    """Let a logger write into the run's folder by default, or into its own default below that.

    Args:
        kind: A class, which may be any.
        actions: Those that parse its arguments.
    """
    if not isinstance(kind, type) or not issubclass(kind, Logger):
        return
    for action in actions:
        if action.dest == "save_dir":
            action.required = False
            action.default = str(Path(IN_RUN_FOLDER) / (action.default or ""))


def in_folder(loggers: Any, folder: Path) -> Any:
    """Return the settings of a logger, or of several, for a run in a folder."""
    if isinstance(loggers, list):
        return [in_folder(logger, folder) for logger in loggers]
    save_dir = str(getattr(getattr(loggers, "init_args", None), "save_dir", ""))
    if not save_dir.startswith(IN_RUN_FOLDER):
        return loggers
    loggers = loggers.clone()
    loggers.init_args.save_dir = save_dir.replace(IN_RUN_FOLDER, str(folder))
    return loggers


def tensorboard_command(loggers: Iterable[Logger], runs: Path) -> str:
    """Return the command that shows the events that loggers have written, of all runs if possible; "" without events.

    Args:
        loggers: The loggers of a run.
        runs: The folder of all runs.
    """
    for folder in [Path(logger.log_dir) for logger in loggers if isinstance(logger, TensorBoardLogger)]:
        if any(folder.glob("events.out.tfevents.*")):
            shown = runs if folder.is_relative_to(runs) else folder
            return f"tensorboard --logdir {shlex.quote(str(shown))}"
    return ""
