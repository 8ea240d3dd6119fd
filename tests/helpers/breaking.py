"""Commands that break off at a call of our choice, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from worldlm.cli import main

MOMENTS = {
    "tokenising": "worldlm.data.packing:Packing.append",
    "packed": "worldlm.data.packing:Packing.finish",
    "fitting": "worldlm.models:LanguageModule.training_step",
    "aggregating": "worldlm.rounds.executor:RoundExecutor._aggregate",
    "talking": "worldlm.rounds.executor:RoundExecutor._upload",
    "paging": "worldlm.storage.pages:save",
    "writing a checkpoint": "worldlm.checkpoint.write:_PageReleasingFile.write",
    "renaming a file": "pathlib:Path.replace",
    "recording": "worldlm.monitoring.record:Record._write",
}
"""Where a run may be killed: what is called at those moments."""


def _find(moment: str) -> tuple[Any, str]:
    """Return what owns the function that is called at a moment, and the function's name."""
    module, _, path = MOMENTS[moment].partition(":")
    *owners, name = path.split(".")
    owner: Any = import_module(module)
    for one in owners:
        owner = getattr(owner, one)
    return owner, name


def kill() -> None:
    """End this process as a machine that is switched off would."""
    os.kill(os.getpid(), signal.SIGKILL)


def refuse_to_write(number: int) -> None:
    """Fail as a disk that is full, or read-only, does: by the number of the system's error."""
    raise OSError(number, os.strerror(number))


def break_off(moment: str, number: int, where: str, how: Callable[[], None] = kill) -> None:
    """Break this process off at its so-manieth call of a moment's function: before, after or within it."""
    owner, name = _find(moment)
    original, calls = getattr(owner, name), 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < number:
            return original(*args, **kwargs)
        if where == "after":
            original(*args, **kwargs)
        if where == "within" and moment == "paging":
            original(*args, **kwargs)
            os.truncate(args[1], Path(args[1]).stat().st_size // 2)
        if where == "within" and moment == "writing a checkpoint":
            original(args[0], memoryview(args[1]).cast("B")[: memoryview(args[1]).nbytes // 2])
            args[0].flush()
        return how()

    setattr(owner, name, wrapped)


def count_calls(path: Path) -> None:
    """Let this process write down how often it comes to every moment."""
    counts: Counter[str] = Counter()

    def wrap(moment: str) -> None:
        owner, name = _find(moment)
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            counts[moment] += 1
            found = original(*args, **kwargs)
            if moment == "recording":
                path.write_text(json.dumps(counts))
            return found

        setattr(owner, name, wrapped)

    for moment in MOMENTS:
        wrap(moment)


def carry_out(arguments: tuple[str, ...], log: Path, prepare: Callable[[], object]) -> None:
    """Carry out a command, prepared for what is to happen to it; what it says goes to the log."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(one, "w", buffering=1, closefd=False) for one in (1, 2))
    prepare()
    status = main(arguments)
    sys.stdout.flush()
    os._exit(status)
