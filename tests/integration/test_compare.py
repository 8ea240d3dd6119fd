"""A real comparison: two methods, in processes of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_world import BEGINNING, write_toy_world

from worldlm.cli import main

TOPOLOGY = """\
name: shore
settings: {num_local_steps: 3}
root:
  name: world
  children: [{name: hills, corpus: hills}, {name: sea, corpus: sea}]
"""

FEDAVG = """\
trainer:
  callbacks:
    - class_path: worldlm.callbacks.Averaging
      init_args: {parts: [backbone, keys, values]}
    - class_path: worldlm.callbacks.Record
"""

WORLDLM = """\
trainer:
  callbacks:
    - class_path: worldlm.callbacks.Averaging
      init_args: {parts: [backbone]}
    - class_path: worldlm.callbacks.AttentionAggregation
    - class_path: worldlm.callbacks.Record
"""


@pytest.fixture(autouse=True)
def shore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, two methods, a topology and text, to stand in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["worldlm"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_toy_world(tmp_path, TOPOLOGY, BEGINNING, str(tmp_path / "cache"))
    (tmp_path / "fedavg.yaml").write_text(FEDAVG)
    (tmp_path / "worldlm.yaml").write_text(WORLDLM)
    return tmp_path


def compare(*more: str, seeds: str = "1") -> int:
    methods = ["--methods", "fedavg.yaml,worldlm.yaml"]
    return main(
        [
            "compare",
            "--recipe",
            "tiny.yaml",
            *methods,
            "--seeds",
            seeds,
            "--name",
            "it",
            "--trainer.max_epochs=2",
            "--trainer.logger=false",  # for which pictures would be drawn
            *more,
        ]
    )


def test_a_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare("--jobs", "2") == 0, capsys.readouterr().err
    folder, first = Path("runs/it"), capsys.readouterr()
    assert "NO " not in first.out
    table = (folder / "table.md").read_text().splitlines()
    assert table[0].startswith("| method | seeds | after_merge | after_fit |")
    assert [line.split(" | ")[0] for line in table[2:4]] == ["| fedavg", "| worldlm"]
    pictures = {"perplexity_by_round", "perplexity_by_megabytes", "attention_worldlm"}
    assert {path.stem for path in folder.glob("*.png")} == pictures
    record = json.loads((folder / "worldlm-1" / "version_0" / "results.json").read_text())
    assert record["finished"]
    assert record["data_nodes"]["sea"]["text"][0].startswith("sea-")
    assert [len(record["rounds"]), record["rounds"][1]["nodes"]["sea"]["tokens"]] == [2, 2 * 3 * 4 * 16]
    assert compare() == 0
    again = capsys.readouterr()
    assert again.err.splitlines() == [
        "[1/2] fedavg, seed 1: finished before",
        "[2/2] worldlm, seed 1: finished before",
    ]
    assert again.out == first.out
    assert compare("--data.batch_size", "2") == 2
    assert "runs/it/fedavg-1 was started with another command line" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on(shore: Path) -> None:
    """Ctrl-C ends all processes; the same command goes on, to the record of a comparison that nobody disturbed."""
    methods = ["--methods", "fedavg.yaml,worldlm.yaml", "--jobs", "2", "--trainer.max_epochs", "30"]
    command = [sys.executable, "-m", "worldlm", "compare", "--recipe", "tiny.yaml", *methods]
    process = subprocess.Popen([*command, "--name", "again"], stderr=subprocess.PIPE, text=True)
    results = [Path(f"runs/again/{method}-1/version_0/results.json") for method in ("fedavg", "worldlm")]
    while not any(path.is_file() for path in results):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, output = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopping; Ctrl-C again stops at once" in output
    begun = [json.loads(path.read_text()) for path in results if path.is_file()]
    assert all(1 <= record["rounds_done"] < 30 and not record["finished"] for record in begun)
    assert subprocess.run([*command, "--name", "again"]).returncode == 0
    assert subprocess.run([*command, "--name", "whole"]).returncode == 0
    for method in ("fedavg", "worldlm"):
        first, other = (json.loads((newest(name, method) / "results.json").read_text()) for name in ("again", "whole"))
        assert first.pop("seconds") > 0
        assert other.pop("seconds") > 0
        assert first.pop("last_start")["command"].startswith("worldlm fit --recipe ")
        assert other.pop("last_start")["command"].startswith("worldlm fit --recipe ")
        assert first == other


def newest(name: str, method: str) -> Path:
    return sorted(Path(f"runs/{name}/{method}-1").glob("version_*"))[-1]


@pytest.mark.slow
def test_a_method_that_does_not_keep_privacy_fails_and_the_others_run(
    shore: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (shore / "worldlm.yaml").read_text()
    (shore / "worldlm.yaml").write_text(text + "    - class_path: worldlm.callbacks.UpdatePrivacy\n")
    assert compare("--federation.settings.privacy", "{clip_norm: 0.5, noise_multiplier: 1.0}") == 1
    output = capsys.readouterr().err
    assert "asks for privacy at world, hills, sea, and no callback provides it: add worldlm.callbacks.Upd" in output
    assert not list(Path("runs/it/fedavg-1").glob("version_*/results.json"))
    assert json.loads(Path("runs/it/worldlm-1/version_0/results.json").read_text())["finished"]
