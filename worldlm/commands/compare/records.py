"""The runs of a comparison, read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from worldlm.commands.compare.plan import SETTINGS
from worldlm.runs.results import RESULTS, RunRecord, read_results, results_of
from worldlm.topology.errors import UserError

ORDER = "comparison.json"
"""In a comparison's folder: the order of its methods."""


def by_method(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Group records by method, in the order in which the methods come first."""
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(record.method, []).append(record)
    return groups


def common_nodes(records: Sequence[RunRecord]) -> list[str]:
    """Return the data nodes that every run has, in the order of the first."""
    return [name for name in records[0].data_nodes if all(name in one.data_nodes for one in records)]


def is_finished(folder: Path) -> bool:
    """Whether the last version in a run's folder came to its end."""
    path = results_of(folder)
    return path is not None and bool(read_results(path)["finished"])


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Read the finished runs in folders, as `find_runs` finds them.

    Raises:
        UserError: If a folder holds none, a run is not finished, or two have one method and seed.
    """
    records = find_runs(folders)
    wrong = [f"{one.folder}: not finished" for one in records if not one.content["finished"]]
    seen: dict[tuple[str, int], RunRecord] = {}
    for one in records:
        other = seen.setdefault((one.method, one.seed), one)
        if other is not one:
            wrong.append(f"{one.folder} and {other.folder}: both are {one.title}")
    if wrong:
        raise UserError(wrong)
    return records


def find_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Read the runs in folders: of one run, of its version_N, or of a whole comparison.

    A method that was run on several topologies is told apart by the topology's name.

    Raises:
        UserError: If a folder holds none.
    """
    records: list[RunRecord] = []
    for folder in folders:
        found = [(one, path) for one in run_folders(folder) if (path := results_of(one)) is not None]
        if not found:
            raise UserError([f"{folder}: no {RESULTS} there, nor in a run's folder below"])
        records += [RunRecord(method=_method(one), folder=one, content=read_results(path)) for one, path in found]
    trees: dict[str, set[str]] = {}
    for one in records:
        trees.setdefault(one.method, set()).add(one.topology)
    return [
        replace(one, method=f"{one.method} on {one.topology}") if len(trees[one.method]) > 1 else one for one in records
    ]


def in_order(records: Sequence[RunRecord], folders: Sequence[Path]) -> list[RunRecord]:
    """Sort as the comparisons that were read had their methods; the rest as read.

    Raises:
        UserError: If a comparison's order cannot be read.
    """
    order: list[str] = []
    for folder in folders:
        path = folder / ORDER
        try:
            order += map(str, json.loads(path.read_text("utf-8"))["methods"]) if path.is_file() else []
        except (KeyError, TypeError, ValueError) as error:
            raise UserError([f"{path}: no order of methods: {error}"]) from error
    order += [one.method for one in records]
    return sorted(records, key=lambda one: order.index(one.method))


def run_folders(folder: Path) -> list[Path]:
    """Return a folder itself if it is a run's, else those of the runs of the comparison that it holds."""
    if results_of(folder) is not None:
        return [folder]
    return sorted(path.parent for path in folder.glob(f"*/{SETTINGS}"))


def _method(folder: Path) -> str:
    """Name the method of a run's folder: METHOD of METHOD-SEED in a comparison, else the run's name."""
    own = folder.parent if folder.name.startswith("version_") else folder
    return own.name.rpartition("-")[0] if (own / SETTINGS).is_file() else own.name
