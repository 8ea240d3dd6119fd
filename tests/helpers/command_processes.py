"""Starts commands of WorldLM in processes of their own, which share one import of all packages."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["worldlm.commands.organisations.run_node", "worldlm.commands.inference.export"])


def start(words: Sequence[str], folder: Path, log: Path) -> BaseProcess:
    """Start a command.

    Args:
        words: The words after `worldlm`.
        folder: The current folder of the command.
        log: The file to which its output is appended.
    """
    process = CONTEXT.Process(target=_run, args=(list(words), folder, log))
    process.start()
    return process


def _run(words: list[str], folder: Path, log: Path) -> None:
    os.chdir(folder)
    os.environ["OMP_NUM_THREADS"] = "1"
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    sys.argv = ["worldlm", *words]
    from worldlm.cli import main

    sys.exit(main(words))
