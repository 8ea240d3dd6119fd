"""The runs of a report, read and checked: finished or not, from whomever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from worldlm.commands.compare.records import find_runs, in_order, run_folders
from worldlm.runs.folder import CONFIG
from worldlm.runs.results import RunRecord, results_of
from worldlm.runs.results_schema import read_valid_results
from worldlm.topology.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run, and what lies beside its record."""

    record: RunRecord
    """What it came to; its method names it among the runs of the report."""
    folder: Path
    """The version's folder, where results.json lies."""
    config: str | None
    """Its config.yaml; None where there is none."""

    @property
    def has_rounds(self) -> bool:
        """Whether a round was finished."""
        return bool(self.record.rounds)


def read(folders: Sequence[Path]) -> list[Run]:
    """Read runs: of a run's folder its last version, of a version_N that one, of a comparison all.

    Raises:
        UserError: If a folder holds none, or a results.json is not as worldlm writes it: one line each.
    """
    wrong = list[str]()
    for path in dict.fromkeys(results_of(one) for folder in folders for one in run_folders(folder)):
        try:
            if path is not None:
                read_valid_results(path)
        except UserError as error:
            wrong += error.mistakes
    if wrong:
        raise UserError(wrong)
    records = {
        one.folder.resolve(): one for one in in_order(find_runs(folders), folders)
    }  # each once, however often it was named
    return [_beside(one) for one in _told_apart(list(records.values()))]


def _told_apart(records: list[RunRecord]) -> list[RunRecord]:
    """Name runs of one method and seed by their folders too."""
    count = Counter((one.method, one.seed) for one in records)
    return [
        replace(one, method=f"{one.method} in {one.folder}") if count[one.method, one.seed] > 1 else one
        for one in records
    ]


def _beside(record: RunRecord) -> Run:
    path = results_of(record.folder)
    folder = record.folder if path is None else path.parent
    config = folder / CONFIG
    text = config.read_text("utf-8", errors="replace") if config.is_file() else None
    return Run(record=record, folder=folder, config=text)
