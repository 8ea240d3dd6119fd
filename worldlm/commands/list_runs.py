"""`worldlm runs`: lists the runs of a folder, newest first, from their results.json. Does not import torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from worldlm.cli.console import table_console
from worldlm.cli.parser import Parser
from worldlm.runs.guarantees import meanings, warnings
from worldlm.runs.lock import is_at_work
from worldlm.runs.results import MOMENTS, RESULTS, Moment, RunRecord, read_results
from worldlm.runs.scores import best_mean, far_worse, far_worse_text, mean_text
from worldlm.topology.errors import UserError, join_names

State = Literal["running", "finished", "stopped", "unreadable"]

_MAX_MEANINGS = 4
"""Meanings of epsilon that are printed below the table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedRun:
    """A run in the list."""

    run: str
    """The run's folder, relative to the folder that is listed."""
    state: State
    """`stopped` is unfinished and not running: it was stopped, or it crashed."""
    last_write: float
    """Seconds since 1970: as recorded in results.json, which a copy keeps; that of the files if it runs or has none."""
    topology: str | None = None
    """The topology's name. Like all fields below, None before the end of the first round."""
    seed: int | None = None
    rounds_done: int = 0
    rounds_wanted: int | None = None
    best: dict[Moment, float | None] | None = None
    """Lowest mean perplexity per token over the data nodes of any round; None if it was never evaluated."""
    num_nodes: dict[Moment, int] | None = None
    """The number of nodes in these means."""
    num_data_nodes: int = 0
    far_worse: tuple[str, ...] = ()
    """The nodes that are far worse than at the start; see `worldlm.runs.scores.far_worse`."""
    epsilon: float | None = None
    """The largest epsilon that a node has spent; None if no node is private."""
    epsilon_means: tuple[str, ...] = ()
    """At which delta, for which unit and towards whom; see `worldlm.runs.guarantees.meanings`."""
    problem: str | None = None
    """The reason why its results cannot be read."""


def list_runs(arguments: Sequence[str]) -> int:
    """Print the runs of a folder.

    Args:
        arguments: The words after `worldlm runs`.

    Returns:
        The exit status, 0. A run that cannot be read is listed with the reason.

    Raises:
        UserError: For mistakes that the user can correct.
    """
    options = _parser().parse_args(arguments)
    folder = Path(options.folder or "runs")
    if not folder.is_dir() and (options.folder or folder.exists()):
        raise UserError([f"runs: no folder {folder}"])
    listed = sorted((read_run(path, folder) for path in find_runs(folder)), key=lambda run: -run.last_write)
    if options.json:
        print(json.dumps([as_json(run) for run in listed], indent=1, allow_nan=False))
    elif listed:
        _print(listed, folder)
    else:
        print(f"no runs in {folder} yet; worldlm fit --recipe quickstart makes one")
    return 0


def find_runs(folder: Path) -> Iterator[Path]:
    """Yield the folders of runs in a folder and below: those called version_N, and any with a results.json."""
    seen = set[str]()  # links may lead in a circle
    for name, subfolders, files in os.walk(folder, followlinks=True):
        path = Path(name)
        if (real := os.path.realpath(name)) in seen:
            subfolders.clear()
            continue
        seen.add(real)
        is_version = path.name[:8] == "version_" and path.name[8:].isdecimal()
        if RESULTS in files or RESULTS in subfolders or is_version:
            subfolders.clear()
            yield path
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))


def read_run(path: Path, folder: Path) -> ListedRun:
    """Read the state and the results of a run.

    Args:
        path: The run's folder.
        folder: The folder that is listed.
    """
    relative = path.relative_to(folder).as_posix()
    name = path.absolute().name if relative == "." else relative
    facts: dict[str, Any] = {"run": name.encode("utf-8", "replace").decode(), "last_write": _last_write(path)}
    state: State = "running" if is_at_work(path) else "stopped"
    if not os.path.lexists(path / RESULTS):
        return ListedRun(state=state, **facts)
    try:
        record = RunRecord(method="", folder=path, content=read_results(path / RESULTS))
        finished = state != "running" and record.content["finished"] is True
        if state != "running" and (written := _recorded_time(record)) is not None:
            facts["last_write"] = written
        return ListedRun(state="finished" if finished else state, **facts, **_figures(record))
    except UserError as error:
        problem = str(error)
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError, RecursionError) as error:
        problem = f"{path / RESULTS}: no record of a run: {type(error).__name__} {error}"
    return ListedRun(state="unreadable", **facts, problem=" ".join(problem.split()))


def _figures(record: RunRecord) -> dict[str, Any]:
    wanted = record.content["rounds_wanted"]
    # nodes that are never evaluated after_merge, as the one that trains in centralised training, are left out
    nodes = [name for name in record.data_nodes if record.series(name, "after_merge")]
    means = {moment: best_mean(record, nodes, moment) for moment in MOMENTS}
    return {
        "topology": record.topology,
        "seed": record.seed,
        "rounds_done": int(record.content["rounds_done"]),
        "rounds_wanted": None if wanted is None else int(wanted),
        "best": {moment: mean for moment, (mean, _) in means.items()},
        "num_nodes": {moment: number for moment, (_, number) in means.items()},
        "num_data_nodes": len(record.data_nodes),
        "far_worse": tuple(far_worse(record)),
        "epsilon": record.epsilon if record.rounds else None,
        "epsilon_means": tuple(meanings(record.nodes)),
    }


def _recorded_time(record: RunRecord) -> float | None:
    """Return when results.json was written; None if it was written by an older version."""
    text = record.content.get("last_start", {}).get("written")
    return None if text is None else datetime.fromisoformat(text).timestamp()


def _last_write(folder: Path) -> float:
    """Return the time of the last write to a run's folder, without its lock, which this command touches."""
    times = [folder.stat().st_mtime]
    for path in (*folder.glob("[!.]*"), *folder.glob("checkpoints/*")):
        try:
            times.append(path.stat().st_mtime)
        except OSError:  # removed meanwhile
            continue
    return max(times)


# ---------------------------------------------------------------------- output


def as_json(run: ListedRun) -> dict[str, Any]:
    """Return a run as JSON values. As in results.json, a number that is not finite is null."""
    content: dict[str, Any] = {"run": run.run, "state": run.state}
    content["last_write"] = datetime.fromtimestamp(run.last_write).astimezone().isoformat(timespec="seconds")
    if run.problem is not None:
        return {**content, "problem": run.problem}
    content |= {"rounds_done": run.rounds_done}
    if run.topology is not None:
        content |= {"rounds_wanted": run.rounds_wanted, "topology": run.topology, "seed": run.seed}
        content |= {f"best_{moment}": _finite(value) for moment, value in (run.best or {}).items()}
        content |= {f"nodes_{moment}": number for moment, number in (run.num_nodes or {}).items()}
        content |= {"far_worse": list(run.far_worse)}
    if run.epsilon is None:
        return content
    return {**content, "epsilon": _finite(run.epsilon), "epsilon_means": list(run.epsilon_means)}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _print(listed: Sequence[ListedRun], folder: Path) -> None:
    private = any(run.epsilon is not None for run in listed)
    names = ("run", "topology", "seed", "state", "round", *MOMENTS, *(["epsilon"] if private else []), "last write")
    table = Table()
    for name in names:
        table.add_column(name, justify="left" if name in ("run", "topology", "state") else "right", overflow="fold")
    for run in listed:
        table.add_row(*map(Text, _cells(run, private)))
    console = table_console(200)
    console.print(table)
    means = list(dict.fromkeys(line for run in listed for line in run.epsilon_means))
    for line in means[:_MAX_MEANINGS]:
        console.print(f"{line} (the largest of any node)", markup=False, soft_wrap=True)
    for line in warnings((run.run, run.epsilon) for run in listed if run.epsilon is not None):
        console.print(line, markup=False, soft_wrap=True)
    worse = [f"{run.run}: {far_worse_text(join_names(run.far_worse, 6))}" for run in listed if run.far_worse]
    problems = [run.problem for run in listed if run.problem]
    note = "perplexity per token, mean over the data nodes, lowest of all rounds"
    for line in (*worse, *problems, f"done. {note}: {folder}"):
        console.print(line, markup=False, soft_wrap=True)


def _cells(run: ListedRun, private: bool) -> list[str]:
    rounds = f"{run.rounds_done}/{run.rounds_wanted}" if run.rounds_wanted is not None else str(run.rounds_done)
    best, numbers = run.best or {}, run.num_nodes or {}
    return [
        run.run,
        run.topology or "",
        "" if run.seed is None else str(run.seed),
        run.state,
        "" if run.problem else rounds,
        *(mean_text(best.get(moment), numbers.get(moment, 0), run.num_data_nodes) for moment in MOMENTS),
        *(["" if run.epsilon is None else f"{run.epsilon:.2f}"] if private else []),
        datetime.fromtimestamp(run.last_write).strftime("%Y-%m-%d %H:%M"),
    ]


def _parser() -> Parser:
    parser = Parser("worldlm runs", "List the runs of a folder, newest first.")
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="folder to list; runs by default")
    parser.add_argument("--json", action="store_true", help="print a JSON list of objects")
    return parser
