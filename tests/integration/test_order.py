"""A small comparison of methods on nodes with different text: WorldLM ends below FedAvg at every node."""

from __future__ import annotations

import json
import os
import statistics
import string
import sys
from pathlib import Path
from typing import Any

import pytest

from worldlm.cli import main
from worldlm.commands.compare.records import read_runs
from worldlm.data import StandardLibrary

TEXT = os.environ.get("WORLDLM_MULTILINGUAL")
"""A folder of text for the recipe `multilingual`; without it, that part is skipped."""
SHIFTS = {"topics": 0, "docstrings": 6, "network": 13, "tools": 19}


def write_languages(folder: Path) -> list[str]:
    """Write the quickstart's text with another alphabet at every node, and return the arguments that read it."""
    arguments: list[str] = []
    for area, shift in SHIFTS.items():
        corpus: Any = StandardLibrary(area=area)  # type: ignore[arg-type]
        cases = (string.ascii_lowercase, string.ascii_uppercase)
        alphabet = str.maketrans("".join(cases), "".join(case[shift:] + case[:shift] for case in cases))
        for split in ("train", "validation"):
            lines = [json.dumps({"text": text.translate(alphabet)}) + "\n" for text in corpus.documents(split)]
            (folder / f"{area}-{split}.jsonl").write_text("".join(lines))
        arguments += [f"--data.local.{area}", str(folder / f"{area}-{{split}}.jsonl")]
    return arguments


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("recipe", "given"),
    [
        ("quickstart", ("--trainer.max_epochs", "6")),
        pytest.param(
            "multilingual",
            ("--trainer.max_epochs", "5", "--federation.settings.num_local_steps", "40", "--data.root", TEXT or ""),
            marks=pytest.mark.skipif(TEXT is None, reason="WORLDLM_MULTILINGUAL names no folder of text"),
        ),
    ],
)
def test_worldlm_is_below_fedavg(
    recipe: str, given: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["worldlm"])
    if recipe == "quickstart":
        given += tuple(write_languages(tmp_path))
    methods = ("--methods", "methods/fedavg,methods/worldlm")
    options = ("--data.cache_dir", "cache", "--trainer.check_val_every_n_epoch", "8", *given)
    assert main(["compare", "--recipe", recipe, *methods, "--jobs", "2", "--name", "order", *options]) == 0
    runs = {run.method: run for run in read_runs([Path("runs/order")])}
    for moment, margin in (("after_merge", 1.2), ("after_fit", 1.0)):
        scores = {
            method: [score for node in run.data_nodes if (score := run.last(node, moment)) is not None]
            for method, run in runs.items()
        }
        assert len(scores["fedavg"]) == len(scores["worldlm"]) == 4
        assert margin * statistics.fmean(scores["worldlm"]) < statistics.fmean(scores["fedavg"])
        if moment == "after_merge":
            assert all(worldlm < fedavg for worldlm, fedavg in zip(scores["worldlm"], scores["fedavg"], strict=True))
