"""The order of methods on real text, small: WorldLM ends below FedAvg at every node (docs/results.md has it large)."""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path

import pytest

from worldlm.cli import main
from worldlm.compare.records import read_runs

TEXT = os.environ.get("WORLDLM_MULTILINGUAL")
"""A folder for the recipe `multilingual`; without one, the text is that of Python's own library."""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("recipe", "given"),
    [
        ("quickstart", ("--trainer.max_epochs", "8")),
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
    methods = ("--methods", "methods/fedavg,methods/worldlm")
    options = ("--data.cache_dir", "cache", "--trainer.check_val_every_n_epoch", "8", *given)
    assert main(["compare", "--recipe", recipe, *methods, "--jobs", "2", "--name", "order", *options]) == 0
    runs = {one.method: one for one in read_runs([Path("runs/order")])}
    for moment, margin in (("after_merge", 1.2), ("after_fit", 1.0)):
        scores = {
            method: [score for node in one.data_nodes if (score := one.last(node, moment)) is not None]
            for method, one in runs.items()
        }
        assert len(scores["fedavg"]) == len(scores["worldlm"]) == 4
        assert margin * statistics.fmean(scores["worldlm"]) < statistics.fmean(scores["fedavg"])
        if moment == "after_merge":
            assert all(ours < theirs for ours, theirs in zip(scores["worldlm"], scores["fedavg"], strict=True))
