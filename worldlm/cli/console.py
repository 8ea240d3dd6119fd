"""What the libraries below a run may say in a terminal, and how what WorldLM has to say gets there."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler

_NOISE = (
    ".*treespec.*",  # raised within Lightning, at every fit
    ".*does not have many workers.*",  # batches come from a memory map
    "Full backward hook is firing.*",  # raised within Opacus
    ".*callbacks used to create the checkpoint need to be provided.*",  # validate needs other callbacks than fit
    "The `srun` command is available.*",  # on the login node of a cluster, whether it is wanted or not
)


def quiet_libraries() -> None:
    """Keep back what says nothing about the run; warnings that are left are one line each, on standard error."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # LightningCLI's calls, not ours
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    warnings.showwarning = lambda message, *_: print(f"worldlm: warning: {message}", file=sys.stderr)
    threading.excepthook = _tell_of_a_thread


def _tell_of_a_thread(failed: threading.ExceptHookArgs) -> None:
    """Say in a line that a library's thread could not write its file, as TensorBoard's on a full disk."""
    if isinstance(failed.exc_value, OSError):
        print(f"worldlm: warning: in the background: {failed.exc_value}", file=sys.stderr)
    else:
        threading.__excepthook__(failed)


@contextmanager
def log_to_terminal() -> Iterator[None]:
    """Show what the run has to say (refusals, spent budgets), once: Opacus gives the root logger a handler too."""
    ours = logging.getLogger("worldlm")
    handler = RichHandler(console=Console(stderr=True), show_time=False, show_level=False, show_path=False)
    before = ours.level, ours.propagate
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.level, ours.propagate = before
