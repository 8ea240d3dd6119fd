"""Output in a terminal: the messages of WorldLM, and the warnings of libraries."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.logging import RichHandler

_IGNORED_WARNINGS = (
    ".*treespec.*",  # raised within Lightning, at every fit
    ".*does not have many workers.*",  # batches come from a memory map
    "Full backward hook is firing.*",  # raised within Opacus
    ".*callbacks used to create the checkpoint need to be provided.*",  # validate needs other callbacks than fit
    "The `srun` command is available.*",  # on the login node of a cluster, even where the user does not want SLURM
)


def quiet_libraries() -> None:
    """Hide warnings that do not concern the run, and print all others in one line on standard error."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # a profile is logged when the run ends
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # they concern LightningCLI's calls
    for message in _IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    warnings.showwarning = show_warning
    threading.excepthook = _report_thread_error


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning in one line; it takes the place of `warnings.showwarning`."""
    print(f"worldlm: warning: {message}", file=sys.stderr)


def _report_thread_error(failure: threading.ExceptHookArgs) -> None:
    """Print one line where a library's thread cannot write its file, as TensorBoard's on a full disk."""
    if isinstance(failure.exc_value, OSError):
        print(f"worldlm: warning: in the background: {failure.exc_value}", file=sys.stderr)
    else:
        threading.__excepthook__(failure)


@contextmanager
def log_to_terminal() -> Iterator[None]:
    """Print the run's log messages once each. Opacus adds a handler to the root logger, which would repeat them."""
    logger = logging.getLogger("worldlm")
    console = Console(stderr=True)
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_time=False, show_level=False, show_path=False)
    else:
        handler = logging.StreamHandler()  # a message stays one line in a file or a pipe
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


def table_console(width: int) -> Console:
    """Return a console for tables on standard output.

    Args:
        width: Columns of a table in a file or a pipe; a terminal has its own width.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = width
    return console
