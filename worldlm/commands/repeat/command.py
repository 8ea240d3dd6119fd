"""`worldlm fit --repeat RUN`: runs a finished run again and compares the results. Imports torch late."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from worldlm.cli.parser import REPEAT, CommandLine, split_option
from worldlm.commands.repeat.first_run import FirstRun, read_first_run
from worldlm.runs.folder import CONFIG, find_run

_SUFFIX = "-repeated"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def repeat(command_line: CommandLine) -> int:
    """Run a run again with its own settings, in a new folder, and report whether the results are the same.

    Args:
        command_line: Its `repeat` names the run; its settings override the run's.

    Returns:
        0 if the runs matched, 1 if they did not; else as `worldlm fit`.

    Raises:
        UserError: For mistakes that the user can correct, one line each.
    """
    assert command_line.repeat is not None
    first = read_first_run(find_run(command_line.repeat))
    threads = first.content.get("last_start", {}).get("threads")
    if threads and not any(os.environ.get(name) for name in _THREADS):
        # sums depend on the number of threads; torch, also of other processes, reads it when it is imported
        os.environ["OMP_NUM_THREADS"] = str(threads)
    from worldlm.commands.repeat.repetition import run_again

    return run_again(first, repeated_command(first, command_line))


def repeated_command(first: FirstRun, command_line: CommandLine) -> CommandLine:
    """Return the command line that repeats a run, into the folder NAME-repeated beside it."""
    folder, config = first.folder.absolute(), first.folder / CONFIG
    is_version = folder.name.startswith("version_")
    name = (folder.parent if is_version else folder).name.removesuffix(_SUFFIX) + _SUFFIX
    runs = first.folder.parents[1] if is_version else first.folder.parent
    options = command_line.settings
    _, others = split_option(command_line.typed, REPEAT)
    start = () if _names("--ckpt_path", options) else ("--ckpt_path", "null")
    own = (f"--recipe={config}", "--runs", str(runs), "--name", name, "--trainer.logger", "null")
    return replace(
        command_line,
        settings=(*own, *start, *options),
        recipes=(config,),
        repeat=str(first.folder),
        typed=(*others[:2], REPEAT, str(first.folder), *others[2:]),  # worldlm fit, and its options
    )


def _names(option: str, words: Sequence[str]) -> bool:
    return any(word.partition("=")[0] == option for word in words)
