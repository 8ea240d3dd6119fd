"""`worldlm compare`: runs several methods with several seeds in one world, and compares the results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from worldlm.cli.console import table_console
from worldlm.cli.parser import Parser, names, whole_number, whole_numbers
from worldlm.commands.compare.checks import check
from worldlm.commands.compare.execute import Start, execute, start_process
from worldlm.commands.compare.plan import PlannedRun, changes, plan_runs
from worldlm.commands.compare.records import ORDER, by_method, common_nodes, in_order, is_finished, read_runs
from worldlm.commands.compare.table import comma_separated, for_terminal, legend, markdown, rows
from worldlm.files.atomic_write import write_text
from worldlm.runs.guarantees import warnings
from worldlm.runs.results import RunRecord, read_results, results_of
from worldlm.topology.errors import UserError

REFERENCES = ("methods/local", "methods/centralized_steps", "methods/centralized_tokens")
"""The methods that --reference adds: training without sharing, and training with all text in one place."""


def compare(arguments: Sequence[str], start: Start = start_process) -> int:
    """Carry out the runs that are not finished, then write a table and pictures of all finished runs.

    Args:
        arguments: The words after `worldlm compare`.
        start: Starts a run.

    Returns:
        The exit status: 1 if a run failed, else 0.

    Raises:
        UserError: For mistakes that the user can correct, one line each.
        FileNotFoundError: If there is no such recipe.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    overrides = _overrides(parser, rest)
    if options.read:
        if options.recipe or options.methods or overrides:
            parser.error("--read reads finished runs: it can be combined with --name and --runs only")
        folders = [Path(folder) for folder in options.read]
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
    if changed := [f"{run.folder} was started with another {change}" for run in runs if (change := changes(run))]:
        raise UserError([*changed, "choose another --name, or remove these folders"])
    console = Console(stderr=True)
    target.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(target / ".lock", timeout=0):
            failed = execute(
                runs,
                jobs=jobs,
                start=start,
                report=lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True),
            )
    except Timeout as error:
        raise UserError([f"another worldlm compare is running in {target}"]) from error
    records = [
        RunRecord(method=run.method, folder=run.folder, content=read_results(path))
        for run in runs
        if is_finished(run.folder) and (path := results_of(run.folder)) is not None
    ]
    order = list(dict.fromkeys(run.method for run in runs))
    write_text(target / ORDER, json.dumps({"methods": order}) + "\n")
    if records:
        report(sorted(records, key=lambda record: order.index(record.method)), target)
    return 1 if failed else 0


def report(records: Sequence[RunRecord], target: Path) -> None:
    """Check that runs are comparable, and write and print their results.

    Args:
        records: Finished runs, in the order of their methods.
        target: Folder for table.md, table.csv and the pictures.

    Raises:
        UserError: If the runs have no data node in common.
    """
    if not common_nodes(records):
        raise UserError(["the runs cannot be compared: they have no data node in common"])
    from worldlm.commands.compare.plots import draw_all  # late: importing matplotlib takes a second
    from worldlm.plots.style import save

    target.mkdir(parents=True, exist_ok=True)
    table, findings = rows(records), check(records)
    checked = "".join(f"- {finding}\n" for finding in findings)
    spent = ((record.method, record.epsilon) for record in records if record.epsilon is not None)
    explained = [*legend(records), *warnings(spent)]
    text = "".join(f"{line}\n" for line in explained)
    write_text(target / "table.md", f"{markdown(table)}\n{text}\nComparable?\n\n{checked}")
    write_text(target / "table.csv", comma_separated(table))
    for name, figure in draw_all(records).items():
        save(figure, target / name)
    console = table_console(240)
    console.print(for_terminal(table, f"{len(by_method(records))} methods, {len(records)} runs"))
    for line in (*explained, *map(str, findings), f"done. table and pictures: {target}"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _parser() -> Parser:
    parser = Parser("worldlm compare", __doc__)
    parser.add_argument(
        "--recipe", action="append", default=[], help="name or path of a recipe of all runs; may be repeated"
    )
    parser.add_argument(
        "--methods", type=names, default=[], help="recipes of the methods, separated by commas; A+B lays B over A"
    )
    parser.add_argument("--seeds", type=whole_numbers, default=[1], help="seeds, separated by commas; 1 by default")
    parser.add_argument("--reference", action="store_true", help=f"also run {', '.join(REFERENCES)}")
    parser.add_argument("--name", help="folder of the comparison; compare-RECIPE by default")
    parser.add_argument("--runs", default="runs", help="folder of all runs")
    parser.add_argument("--jobs", type=whole_number(1), default=1, help="runs at the same time; they share the cores")
    parser.add_argument("--read", nargs="+", metavar="RUN_FOLDER", help="only compare these finished runs")
    parser.add_safe()
    parser.epilog = "Any other --a.b value is passed to every run."
    return parser


def _overrides(parser: Parser, words: Sequence[str]) -> list[str]:
    """Check that the other words look like settings, and return them to be passed to every run."""
    for i, word in enumerate(words):
        name = word.split("=")[0]
        is_value = i > 0 and words[i - 1].startswith("--") and "=" not in words[i - 1]
        if word.startswith("--") and "." not in name:
            parser.error(f"no option {name}")
        if not word.startswith("--") and not is_value:
            parser.error(f"unexpected word {word!r}: settings are written --a.b value")
    return list(words)
