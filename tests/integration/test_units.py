"""Example-level privacy of documents and of persons, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from toy_world import BEGINNING

from worldlm.cli import main

TOPOLOGY = """
name: shore
settings: {num_local_steps: 2, example_privacy: {clip_norm: 1.0, noise_multiplier: 1.0, unit: UNIT}}
root: {name: world, children: [{name: hills, corpus: hills}, {name: sea, corpus: sea}]}
"""

RECIPE = (
    BEGINNING.replace("train: hills.txt, validation: hills_too.txt", "train: hills.jsonl, person: by, CUT")
    .replace("train: sea.txt, validation: sea_too.txt", "train: sea.jsonl, person: by, CUT")
    .replace("CUT", "validation_fraction: 0.3")
    .replace("CACHE", "cache")
    + """
trainer:
  max_epochs: 2
  callbacks: [{class_path: worldlm.callbacks.Averaging}, {class_path: worldlm.callbacks.ExamplePrivacy}]
"""
)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in: each text has 40 records of 8 persons."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("hills", "sea"):
        records = [{"text": f"{name} number {i}. " * (1 + i % 4), "by": f"person {i % 8}"} for i in range(40)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    Path("tiny.yaml").write_text(RECIPE)
    return tmp_path


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        ("person", "each person, with all their documents"),
        pytest.param("document", "each document", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_protects_larger_units(
    unit: str, words: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("shore.yaml").write_text(TOPOLOGY.replace("UNIT", unit))
    assert main(["fit", "--recipe", "tiny.yaml"]) == 0
    meaning = f"example_epsilon: at delta 1e-05, for {words}, towards everyone who gets its model"
    assert meaning in capsys.readouterr().out
    folder = Path("runs/tiny/version_0")
    content = json.loads((folder / "results.json").read_text())
    assert {node["example_unit"] for node in content["topology"]["root"]["children"]} == {unit}
    epsilon = content["rounds"][-1]["nodes"]["sea"]["example_epsilon"]
    assert epsilon > 0
    assert main(["report", str(folder)]) == 0
    assert f"for {words}, towards everyone who gets its model" in (folder / "report.html").read_text()
    assert main(["runs"]) == 0
    assert meaning in capsys.readouterr().out
    assert main(["export", str(folder), "--node", "sea", "--out", "model"]) == 0
    card = Path("model/README.md").read_text()
    assert f"epsilon {epsilon:.2f} at delta 1e-05, for {words}, towards everyone who gets its model" in card


def test_persons_need_a_field_that_names_them(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("shore.yaml").write_text(TOPOLOGY.replace("UNIT", "person"))
    Path("tiny.yaml").write_text(RECIPE.replace("person: by, ", ""))
    assert main(["fit", "--recipe", "tiny.yaml"]) == 2
    line = "node 'hills', corpus 'hills' (train): unit is person, but the corpus does not set person"
    assert line in capsys.readouterr().err
