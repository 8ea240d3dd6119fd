"""`worldlm runs`: the runs of a folder, newest first, from what they wrote down. Needs no torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from worldlm.cli.parser import Parser
from worldlm.runs.folder import is_at_work
from worldlm.runs.results import MOMENTS, RESULTS, Moment, RunRecord, read_results
from worldlm.topology.errors import UserError

State = Literal["running", "finished", "stopped", "unreadable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A run, as the list shows it."""

    run: str
    """Its folder, from the folder that is listed."""
    state: State
    """`stopped`: not finished, and no process is at work on it; whether it was told to stop, nobody wrote down."""
    last_write: float
    """Seconds since 1970."""
    topology: str | None = None
    """Name of its topology; None before the first round is done, as all that follows."""
    seed: int | None = None
    rounds_done: int = 0
    rounds_wanted: int | None = None
    best: dict[Moment, float | None] | None = None
    """Perplexity per token, mean over the data nodes, of the round in which that was lowest; None if never measured."""
    epsilon: float | None = None
    """The largest that a node has spent; None where nothing is private."""
    problem: str | None = None
    """Why it cannot be read."""


def list_runs(given: Sequence[str]) -> int:
    """Print the runs of a folder.

    Args:
        given: What stands after `worldlm runs`.

    Returns:
        The exit status, 0: also where a run cannot be read, which then is a line of its own.

    Raises:
        UserError: What a user can put right.
    """
    options = _parser().parse_args(given)
    folder = Path(options.folder or "runs")
    if not folder.is_dir() and (options.folder or folder.exists()):
        raise UserError([f"runs: no folder {folder}"])
    listed = sorted((look_at(one, folder) for one in find_runs(folder)), key=lambda one: -one.last_write)
    if options.json:
        print(json.dumps([as_json(one) for one in listed], indent=1, allow_nan=False))
    elif listed:
        _print(listed, folder)
    else:
        print(f"no runs in {folder} yet; worldlm fit --recipe quickstart makes one")
    return 0


def find_runs(folder: Path) -> Iterator[Path]:
    """Yield the folders of runs in a folder and below: those called version_N, and any with a results.json."""
    for path, below, files in os.walk(folder):
        here = Path(path)
        if RESULTS in files or RESULTS in below or (here.name[:8] == "version_" and here.name[8:].isdigit()):
            below.clear()
            yield here
        below[:] = sorted(name for name in below if not name.startswith("."))


def look_at(run: Path, folder: Path) -> Listed:
    """Find out what became of a run.

    Args:
        run: Its folder.
        folder: The folder that is listed.
    """
    inside = run.relative_to(folder).as_posix()
    name = run.absolute().name if inside == "." else inside
    facts: dict[str, Any] = {"run": name.encode("utf-8", "replace").decode(), "last_write": _last_write(run)}
    state: State = "running" if is_at_work(run) else "stopped"
    if not os.path.lexists(run / RESULTS):
        return Listed(state=state, **facts)
    try:
        record = RunRecord(method="", folder=run, content=read_results(run / RESULTS))
        finished = state != "running" and record.content["finished"] is True
        return Listed(state="finished" if finished else state, **facts, **_figures(record))
    except UserError as error:
        problem = str(error)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        problem = f"{run / RESULTS}: no record of a run: {type(error).__name__} {error}"
    return Listed(state="unreadable", **facts, problem=" ".join(problem.split()))


def _figures(record: RunRecord) -> dict[str, Any]:
    wanted = record.content["rounds_wanted"]
    return {
        "topology": record.topology,
        "seed": record.seed,
        "rounds_done": int(record.content["rounds_done"]),
        "rounds_wanted": None if wanted is None else int(wanted),
        "best": {moment: best_mean(record, moment) for moment in MOMENTS},
        "epsilon": record.epsilon if record.rounds else None,
    }


def best_mean(record: RunRecord, moment: Moment) -> float | None:
    """Return the lowest mean over the data nodes of any round; None if in no round all of them were measured.

    Nodes that are never measured after_merge, as where one model is trained in one place, are left out.
    """
    nodes = [name for name in record.data_nodes if record.series(name, "after_merge")]
    series = [record.series(name, moment) for name in nodes]
    rounds = set.intersection(*(set(one) for one in series)) if series else ()
    return min((fmean(one[number] for one in series) for number in rounds), default=None)


def _last_write(run: Path) -> float:
    """Return when something of a run was last written; its lock, which looking touches, aside."""
    times = [run.stat().st_mtime]
    for path in (*run.glob("[!.]*"), *run.glob("checkpoints/*")):
        try:
            times.append(path.stat().st_mtime)
        except OSError:  # gone meanwhile
            continue
    return max(times)


# ---------------------------------------------------------------------- what is shown


def as_json(one: Listed) -> dict[str, Any]:
    """Return a run as plain values; as in results.json, what does not apply is missing, what is no number null."""
    told: dict[str, Any] = {"run": one.run, "state": one.state}
    told["last_write"] = datetime.fromtimestamp(one.last_write).astimezone().isoformat(timespec="seconds")
    if one.problem is not None:
        return {**told, "problem": one.problem}
    told |= {"rounds_done": one.rounds_done}
    if one.topology is not None:
        told |= {"rounds_wanted": one.rounds_wanted, "topology": one.topology, "seed": one.seed}
        told |= {f"best_{moment}": _finite(value) for moment, value in (one.best or {}).items()}
    return told if one.epsilon is None else {**told, "epsilon": _finite(one.epsilon)}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _print(listed: Sequence[Listed], folder: Path) -> None:
    private = any(one.epsilon is not None for one in listed)
    table = Table()
    for name in (
        "run",
        "topology",
        "seed",
        "state",
        "round",
        *MOMENTS,
        *(["epsilon"] if private else []),
        "last write",
    ):
        table.add_column(name, justify="left" if name in ("run", "topology", "state") else "right", overflow="fold")
    for one in listed:
        table.add_row(*map(Text, _cells(one, private)))
    console = Console()
    if not console.is_terminal:  # a file has no edge to wrap at
        console.width = 200
    console.print(table)
    for problem in (one.problem for one in listed if one.problem):
        console.print(problem, highlight=False, markup=False, soft_wrap=True)
    told = "perplexity per token, mean over the data nodes, of the round in which it was lowest"
    console.print(f"done. {told}: {folder}", highlight=False, markup=False, soft_wrap=True)


def _cells(one: Listed, private: bool) -> list[str]:
    rounds = f"{one.rounds_done}/{one.rounds_wanted}" if one.rounds_wanted is not None else str(one.rounds_done)
    best = one.best or {}
    return [
        one.run,
        one.topology or "",
        "" if one.seed is None else str(one.seed),
        one.state,
        "" if one.problem else rounds,
        *(_number(best.get(moment)) for moment in MOMENTS),
        *([_number(one.epsilon)] if private else []),
        datetime.fromtimestamp(one.last_write).strftime("%Y-%m-%d %H:%M"),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 1e6 else f"{value:.3g}"


def _parser() -> Parser:
    parser = Parser("worldlm runs", "The runs of a folder, newest first, from what they wrote down.")
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="where to look; runs by default")
    parser.add_argument("--json", action="store_true", help="for programs: a list of objects")
    return parser
