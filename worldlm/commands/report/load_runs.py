"""Reads and checks the runs of a report, finished or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from worldlm.commands.compare.records import find_runs, in_order, run_folders
from worldlm.files.regular import check_regular
from worldlm.runs.folder import CONFIG
from worldlm.runs.results import RunRecord, results_of
from worldlm.runs.results_schema import read_valid_results
from worldlm.topology.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run: its record and its settings."""

    record: RunRecord
    """Its results. The method distinguishes it from the other runs of the report."""
    folder: Path
    """The folder of its results.json."""
    config: str | None
    """Its config.yaml; None if there is none."""

    @property
    def has_rounds(self) -> bool:
        """Whether any round is finished."""
        return bool(self.record.rounds)


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the last version of a run's folder, a version_N itself, or all runs of a comparison.

    Raises:
        UserError: If a folder has no run, or a results.json is not as worldlm writes it; one line each.
    """
    mistakes = list[str]()
    for path in dict.fromkeys(results_of(run) for folder in folders for run in run_folders(folder)):
        try:
            if path is not None:
                read_valid_results(path)
        except UserError as error:
            mistakes += error.mistakes
    if mistakes:
        raise UserError(mistakes)
    # each run once, even if it was named twice
    records = {record.folder.resolve(): record for record in in_order(find_runs(folders), folders)}
    return [_with_config(record) for record in _with_unique_names(list(records.values()))]


def _with_unique_names(records: list[RunRecord]) -> list[RunRecord]:
    """Add the folder to the names of runs that have the same method and seed."""
    count = Counter((record.method, record.seed) for record in records)
    return [
        replace(record, method=f"{record.method} in {record.folder}")
        if count[record.method, record.seed] > 1
        else record
        for record in records
    ]


def _with_config(record: RunRecord) -> Run:
    path = results_of(record.folder)
    folder = record.folder if path is None else path.parent
    config = folder / CONFIG
    text = config.read_text("utf-8", errors="replace") if check_regular(config).is_file() else None
    return Run(record=record, folder=folder, config=text)
