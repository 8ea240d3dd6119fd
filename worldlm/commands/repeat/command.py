"""What `worldlm fit --repeat` was given, checked before torch is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldlm.cli.parser import part
from worldlm.runs.folder import CONFIG, find_run
from worldlm.runs.results import RESULTS
from worldlm.runs.results_schema import read_valid_results
from worldlm.topology.errors import UserError

OPTION = "--repeat"
_SUFFIX = "-repeated"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstRun:
    """The run that is repeated."""

    folder: Path
    """Where it lies."""
    content: dict[str, Any]
    """Its results.json."""
    config: str
    """Its config.yaml."""
    options: tuple[str, ...]
    """What else was given for the repetition."""


def repeat(given: Sequence[str]) -> int:
    """Run a run once more, by its own settings, into a new folder, and say whether it came to the same.

    Args:
        given: What stands after `worldlm fit`: `--repeat RUN`, and settings laid over the run's.

    Returns:
        0 if it matched, 1 if it did not, else as `worldlm fit`.

    Raises:
        UserError: What a user can put right, one line each.
    """
    run, options = split_off_run(given)
    first = first_run(find_run(run), options)
    threads = first.content.get("last_start", {}).get("threads")
    if threads and not any(os.environ.get(name) for name in _THREADS):
        os.environ["OMP_NUM_THREADS"] = str(threads)  # sums depend on it; read when torch is imported, here and below
    from worldlm.commands.repeat.again import run_again

    return run_again(first, arguments(first))


def split_off_run(given: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Part the run that `--repeat` names from the other options.

    Raises:
        UserError: If it names none, or a recipe is named too.
    """
    runs, options = part(given, OPTION)
    if len(runs) != 1 or not runs[0] or runs[0].startswith("--"):
        raise UserError([f"{OPTION} takes one run: worldlm fit {OPTION} runs/NAME/version_0"])
    if any(one.partition("=")[0] == "--recipe" for one in options):
        raise UserError([f"{OPTION} takes all settings from the run: leave --recipe out"])
    return runs[0], tuple(options)


def first_run(folder: Path, options: tuple[str, ...] = ()) -> FirstRun:
    """Read a run that is to be repeated.

    Args:
        folder: As `find_run` gives it.
        options: What else was given.

    Raises:
        UserError: If it lacks a file, came to no end, or did not begin at the beginning.
    """
    results, config = folder / RESULTS, folder / CONFIG
    if missing := [path.name for path in (results, config) if not path.is_file()]:
        raise UserError([f"{folder} holds no {' and no '.join(missing)}: it cannot be repeated"])
    content = read_valid_results(results)
    if not content["finished"]:
        raise UserError([f"{folder} is not finished: finish it first, with worldlm fit and --ckpt_path last"])
    if content.get("changes"):
        raise UserError([f"{folder} went on with a changed topology: what came before that is not in its settings"])
    if content.get("initial_weights") is None:
        raise UserError([f"{folder} went on from the checkpoint of another run, which is not in its settings"])
    return FirstRun(folder=folder, content=content, config=config.read_text("utf-8", "replace"), options=options)


def arguments(first: FirstRun) -> list[str]:
    """Return the command line that repeats a run, beginning with fit: into NAME-repeated, beside it."""
    own = first.folder.absolute()
    above = own.parent if own.name.startswith("version_") else own
    name = above.name.removesuffix(_SUFFIX) + _SUFFIX
    runs = first.folder.parents[1] if own.name.startswith("version_") else first.folder.parent
    anew = () if any(one.partition("=")[0] == "--ckpt_path" for one in first.options) else ("--ckpt_path", "null")
    recipe = ("--recipe", str(first.folder / CONFIG), "--runs", str(runs), "--name", name)
    return ["fit", *recipe, "--trainer.logger", "null", *anew, *first.options]
