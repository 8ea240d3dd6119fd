"""Commands that are interrupted at a chosen call, each in its own process."""

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
from worldlm.monitoring import pictures

MOMENTS = {
    "tokenising": "worldlm.data.packing:Packing.append",
    "packed": "worldlm.data.packing:Packing.finish",
    "fitting": "worldlm.models:LanguageModule.training_step",
    "aggregating": "worldlm.rounds.executor:RoundExecutor._aggregate",
    "uploading": "worldlm.rounds.executor:RoundExecutor._upload",
    "paging": "worldlm.storage.pages:save",
    "writing a checkpoint": "worldlm.checkpoint.write:_PageReleasingFile.write",
    "renaming a file": "pathlib:Path.replace",
    "recording": "worldlm.monitoring.record:Record._write",
}
"""The moments at which a run can be killed, and the function that is called at each of them."""


def _find(moment: str) -> tuple[Any, str]:
    """Return the object that has the function of a moment, and the function's name."""
    module, _, path = MOMENTS[moment].partition(":")
    *owners, name = path.split(".")
    owner: Any = import_module(module)
    for attribute in owners:
        owner = getattr(owner, attribute)
    return owner, name


def kill() -> None:
    """Kill this process, which cannot clean up."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail_to_write(number: int) -> None:
    """Raise the error of a full or read-only disk, given by its number."""
    raise OSError(number, os.strerror(number))


def break_off(moment: str, number: int, where: str, how: Callable[[], None] = kill) -> None:
    """Interrupt this process at the n-th call of a moment's function: before, after or within the call."""
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
    """Make this process write into a file how often each moment's function is called."""
    counts: Counter[str] = Counter()

    def wrap(moment: str) -> None:
        owner, name = _find(moment)
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            counts[moment] += 1
            result = original(*args, **kwargs)
            if moment == "recording":
                path.write_text(json.dumps(counts))
            return result

        setattr(owner, name, wrapped)

    for moment in MOMENTS:
        wrap(moment)


def carry_out(arguments: tuple[str, ...], log: Path, prepare: Callable[[], object]) -> None:
    """Run a command, which draws no pictures, after a preparation. Its output is appended to a log."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    pictures.draw = lambda *_, **__: {}  # takes longer than all the rest of a small run
    prepare()
    status = main(arguments)
    sys.stdout.flush()
    os._exit(status)
