"""Reads the runs of a comparison."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from worldlm.commands.compare.plan import SETTINGS
from worldlm.files.regular import check_regular
from worldlm.runs.results import RESULTS, RunRecord, read_results, results_of
from worldlm.topology.errors import UserError

ORDER = "comparison.json"
"""File in a comparison's folder, with the order of its methods."""


def by_method(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Group records by method, in the order of each method's first record."""
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(record.method, []).append(record)
    return groups


def common_nodes(records: Sequence[RunRecord]) -> list[str]:
    """Return the data nodes that all runs have, in the order of the first run."""
    in_all = set.intersection(*(set(record.data_nodes) for record in records))
    return [name for name in records[0].data_nodes if name in in_all]


def is_finished(folder: Path) -> bool:
    """Return whether the last version in a run's folder is finished."""
    path = results_of(folder)
    return path is not None and bool(read_results(path)["finished"])


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Read the finished runs in folders, as `find_runs` finds them.

    Raises:
        UserError: If a folder has no run, a run is not finished, or two runs have the same method and seed.
    """
    records = find_runs(folders)
    mistakes = [f"{record.folder}: not finished" for record in records if not record.content["finished"]]
    seen: dict[tuple[str, int], RunRecord] = {}
    for record in records:
        other = seen.setdefault((record.method, record.seed), record)
        if other is not record:
            mistakes.append(f"{record.folder} and {other.folder}: both are {record.title}")
    if mistakes:
        raise UserError(mistakes)
    return records


def find_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Read the runs in folders. A folder is that of one run, of its version_N, or of a whole comparison.

    Where a method was run on several topologies, its name includes the topology's.

    Raises:
        UserError: If a folder has no run.
    """
    records: list[RunRecord] = []
    for folder in folders:
        found = [(run, path) for run in run_folders(folder) if (path := results_of(run)) is not None]
        if not found:
            raise UserError([f"{folder}: no {RESULTS} in it, nor in the folder of a run below"])
        records += [RunRecord(method=_method(run), folder=run, content=read_results(path)) for run, path in found]
    topologies: dict[str, set[str]] = {}
    for record in records:
        topologies.setdefault(record.method, set()).add(record.topology)
    return [
        replace(record, method=f"{record.method} on {record.topology}")
        if len(topologies[record.method]) > 1
        else record
        for record in records
    ]


def in_order(records: Sequence[RunRecord], folders: Sequence[Path]) -> list[RunRecord]:
    """Sort runs by the order of methods in their comparisons. All others keep their order.

    Raises:
        UserError: If a comparison's order cannot be read.
    """
    order: list[str] = []
    for folder in folders:
        path = folder / ORDER
        try:
            order += map(str, json.loads(path.read_text("utf-8"))["methods"]) if check_regular(path).is_file() else []
        except (KeyError, TypeError, ValueError) as error:
            raise UserError([f"{path}: has no order of methods: {error}"]) from error
    order += [record.method for record in records]
    return sorted(records, key=lambda record: order.index(record.method))


def run_folders(folder: Path) -> list[Path]:
    """Return a run's own folder, or the folders of all runs of a comparison."""
    if results_of(folder) is not None:
        return [folder]
    return sorted(path.parent for path in folder.glob(f"*/{SETTINGS}"))


def _method(folder: Path) -> str:
    """Return the method of a run: METHOD of a folder METHOD-SEED in a comparison, else the run's name."""
    own = folder.parent if folder.name.startswith("version_") else folder
    return own.name.rpartition("-")[0] if (own / SETTINGS).is_file() else own.name
