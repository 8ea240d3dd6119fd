"""The run that is repeated: read and checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldlm.files.regular import check_regular
from worldlm.runs.folder import CONFIG
from worldlm.runs.results import RESULTS
from worldlm.runs.results_schema import read_valid_results
from worldlm.topology.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstRun:
    """The run that is repeated."""

    folder: Path
    """The run's folder."""
    content: dict[str, Any]
    """Its results.json."""
    config: str
    """Its config.yaml."""


def read_first_run(folder: Path) -> FirstRun:
    """Read a run that is to be repeated.

    Args:
        folder: The run's folder, as `find_run` returns it.

    Raises:
        UserError: If a file is missing, the run is not finished, or it did not start from new weights.
    """
    results, config = folder / RESULTS, folder / CONFIG
    if missing := [path.name for path in (results, config) if not check_regular(path).is_file()]:
        raise UserError([f"{folder} cannot be repeated: it has no {' and no '.join(missing)}"])
    content = read_valid_results(results)
    if not content["finished"]:
        raise UserError([f"{folder} is not finished: finish it first, with worldlm fit and --ckpt_path last"])
    if content.get("changes"):
        raise UserError([f"{folder} cannot be repeated: its topology changed, and config.yaml has only the last one"])
    if len(content.get("noise_keys", [])) > 1:
        raise UserError([f"{folder} cannot be repeated: its noise key was lost or replaced between two rounds"])
    if content.get("initial_weights") is None:
        raise UserError([f"{folder} cannot be repeated: it went on from the checkpoint of another run"])
    return FirstRun(folder=folder, content=content, config=config.read_text("utf-8", "replace"))
