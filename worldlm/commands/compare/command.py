"""`worldlm compare`: the same world with several methods and seeds, side by side."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from worldlm.cli.parser import Parser, names
from worldlm.cli.safe_mode import OPTION
from worldlm.commands.compare.comparable import check
from worldlm.commands.compare.execute import Start, execute, start_process
from worldlm.commands.compare.plan import PlannedRun, changes, plan_runs
from worldlm.commands.compare.records import ORDER, by_method, common_nodes, in_order, is_finished, read_runs
from worldlm.commands.compare.table import LEGEND, comma_separated, for_terminal, markdown, rows
from worldlm.runs.results import RunRecord, read_results, results_of
from worldlm.topology.errors import UserError

REFERENCES = ("methods/local", "methods/centralized_steps", "methods/centralized_tokens")
"""What --reference adds: nobody shares, and all text in one place."""


def compare(given: Sequence[str], start: Start = start_process) -> int:
    """Run what is not finished, then write table and pictures of all that is.

    Args:
        given: What stands after `worldlm compare`.
        start: Starts a run.

    Returns:
        The exit status: 1 if a run failed, else 0.

    Raises:
        UserError: What a user can put right, one line each.
        FileNotFoundError: If there is no such recipe.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(given)
    overrides = _overrides(parser, rest)
    if options.read:
        if options.recipe or options.methods or overrides:
            parser.error("--read reads finished runs: it takes --name and --runs only")
        folders = [Path(one) for one in options.read]
        records = in_order(read_runs(folders), folders)
        target = folders[0] if len(folders) == 1 and not options.name else Path(options.runs, options.name or "compare")
        report(records, target)
        return 0
    if not options.recipe or not options.methods:
        parser.error("needs --recipe and --methods, or --read RUN_FOLDER")
    methods = [*options.methods, *(REFERENCES if options.reference else ())]
    name = options.name or f"compare-{Path(options.recipe[-1]).stem}"
    runs = plan_runs(
        options.recipe, methods, options.seeds, name=name, runs=options.runs, overrides=overrides, safe=options.safe
    )
    return _carry_out(runs, Path(options.runs, name), options.jobs, start)


def _carry_out(runs: Sequence[PlannedRun], target: Path, jobs: int, start: Start) -> int:
    if wrong := [f"{run.folder} was begun with another {found}" for run in runs if (found := changes(run))]:
        raise UserError([*wrong, "take another --name, or remove these folders"])
    console = Console(stderr=True)
    target.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(target / ".lock", timeout=0):
            failed = execute(
                runs,
                jobs=jobs,
                start=start,
                tell=lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True),
            )
    except Timeout as error:
        raise UserError([f"another worldlm compare is at work in {target}"]) from error
    records = [
        RunRecord(method=run.method, folder=run.folder, content=read_results(path))
        for run in runs
        if is_finished(run.folder) and (path := results_of(run.folder)) is not None
    ]
    order = list(dict.fromkeys(run.method for run in runs))
    (target / ORDER).write_text(json.dumps({"methods": order}) + "\n", "utf-8")
    if records:
        report(sorted(records, key=lambda one: order.index(one.method)), target)
    return 1 if failed else 0


def report(records: Sequence[RunRecord], target: Path) -> None:
    """Check that runs are comparable, and write and print what they came to.

    Args:
        records: Finished runs, in the order in which their methods are to stand.
        target: Folder for table.md, table.csv and the pictures.

    Raises:
        UserError: If the runs have no data node in common.
    """
    if not common_nodes(records):
        raise UserError(["the runs have no data node in common: nothing can be compared"])
    from worldlm.commands.compare.figures import draw_all  # late: pictures take a second to import
    from worldlm.plots.style import save

    target.mkdir(parents=True, exist_ok=True)
    table, findings = rows(records), check(records)
    checked = "".join(f"- {finding}\n" for finding in findings)
    legend = "".join(f"{line}\n" for line in LEGEND)
    (target / "table.md").write_text(f"{markdown(table)}\n{legend}\nComparable?\n\n{checked}", "utf-8")
    (target / "table.csv").write_text(comma_separated(table), "utf-8")
    for name, figure in draw_all(records).items():
        save(figure, target / name)
    console = Console()
    if not console.is_terminal:  # a file has no edge to wrap at
        console.width = 240
    console.print(for_terminal(table, f"{len(by_method(records))} methods, {len(records)} runs"))
    for line in (*LEGEND, *map(str, findings), f"done. table and pictures: {target}"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _parser() -> Parser:
    parser = Parser("worldlm compare", __doc__)
    parser.add_argument("--recipe", action="append", default=[], help="name or path of a recipe of all runs; repeats")
    parser.add_argument("--methods", type=names, default=[], help="recipes, with commas between; A+B is one of two")
    parser.add_argument("--seeds", type=_seeds, default=[1], help="seeds, with commas between; 1 by default")
    parser.add_argument("--reference", action="store_true", help=f"also run {', '.join(REFERENCES)}")
    parser.add_argument("--name", help="folder of the comparison; compare-RECIPE by default")
    parser.add_argument("--runs", default="runs", help="folder of all runs")
    parser.add_argument("--jobs", type=_positive, default=1, help="runs at a time, which share the cores")
    parser.add_argument("--read", nargs="+", metavar="RUN_FOLDER", help="run nothing: compare these finished runs")
    parser.add_argument(
        OPTION, action="store_true", help="refuse classes in recipes but worldlm's, torch's, lightning's"
    )
    parser.epilog = "Any other --a.b value is handed on to every run."
    return parser


def _seeds(text: str) -> list[int]:
    return [int(name) for name in names(text)]


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _overrides(parser: Parser, rest: Sequence[str]) -> list[str]:
    """Return what is handed on, having checked that it looks like settings."""
    for i, one in enumerate(rest):
        name = one.split("=")[0]
        value = i > 0 and rest[i - 1].startswith("--") and "=" not in rest[i - 1]
        if one.startswith("--") and "." not in name:
            parser.error(f"no option {name}")
        if not one.startswith("--") and not value:
            parser.error(f"what is {one!r}? Settings are written --a.b value")
    return list(rest)
