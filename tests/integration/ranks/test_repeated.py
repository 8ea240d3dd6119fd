"""A run once more, by `worldlm fit --repeat`, and whether it says rightly that it came to the same."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_world import BEGINNING, write_toy_world

from worldlm.checkpoint.read import open_world
from worldlm.cli import main
from worldlm.commands.repeat.first_run import read_first_run
from worldlm.commands.repeat.repetition import final_weights
from worldlm.federation.parameters import weights_digest

Make = Callable[..., Any]

RECIPE = (
    "seed_everything: 7\n"
    + BEGINNING
    + """\
trainer:
  max_epochs: 2
  accelerator: cpu
  limit_val_batches: 1
  callbacks:
    - class_path: worldlm.callbacks.Averaging
    - class_path: worldlm.callbacks.UpdatePrivacy
    - {class_path: stopping.StopOnce}
    - {class_path: worldlm.callbacks.Samples, init_args: {num_new_tokens: 1}}
    - {class_path: worldlm.callbacks.Pictures, init_args: {every_n_rounds: 99}}
"""
)

TOPOLOGY = """
name: shore
settings: {num_local_steps: 2, privacy: {clip_norm: 0.5, noise_multiplier: 1.0}}
root: {name: world, children: [{name: hills, corpus: hills}, {name: sea, corpus: sea}]}
"""

STOPPING = """
import os, signal
from pathlib import Path
from lightning.pytorch import Callback

class StopOnce(Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 6 and Path("stop").exists():
            Path("stop").unlink()
            os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.fixture(scope="module")
def shore(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to stand in, with a finished run that was stopped within its second round."""
    folder, handler = tmp_path_factory.mktemp("shore"), signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["worldlm"])
        patch.setattr(sys, "path", [*sys.path, str(folder)])
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        write_toy_world(folder, TOPOLOGY, RECIPE)
        (folder / "stopping.py").write_text(STOPPING)
        (folder / "stop").touch()
        assert main(["fit", "--recipe", "tiny.yaml"]) == 143
        assert main(["fit", "--recipe", "tiny.yaml", "--ckpt_path", "last"]) == 0
        yield folder
        sys.modules.pop("stopping", None)
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(autouse=True)
def _here(shore: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shore)


RUN = Path("runs/tiny/version_0")


def results(folder: Path = RUN) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return content


def verdict(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def test_a_stopped_run_is_matched_by_one_that_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    """In another folder, and the digests are those of the weights."""
    assert main(["fit", "--repeat", "runs/tiny", "--runs", "elsewhere"]) == 0
    expected = (
        f"done. matched {RUN}: the weights of 3 nodes and every figure of 2 rounds are the same. results: elsewhere/"
    )
    assert verdict(capsys).startswith(expected)
    again = results(Path("elsewhere/tiny-repeated/version_0"))
    own = {"seconds": 0, "last_start": {}}
    assert {**again, **own} == {**results(), **own}
    world = open_world(RUN / "checkpoints/last.ckpt")
    digests = {name: weights_digest(world.parameters(name)) for name in ("world", "hills", "sea")}
    assert again["final_weights"] == digests


def test_on_two_processes(on_ranks: Make) -> None:
    assert on_ranks(2, lambda: main(["fit", f"--repeat={RUN}", "--runs", "ranks"])) == [0, 0]
    assert results(Path("ranks/tiny-repeated/version_0"))["last_start"]["processes"] == 2


def test_what_cannot_match_is_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--repeat", "runs/tiny", "--seed_everything", "8"]) == 1
    assert "and was not run: seed was 7 and is now 8; initial_weights was" in verdict(capsys)
    text = Path("sea.txt").read_text()
    try:
        Path("sea.txt").write_text(text.replace("salt", "foam"))
        assert main(["fit", "--repeat", "runs/tiny"]) == 1
    finally:
        Path("sea.txt").write_text(text)
    assert re.search(
        r"was not run: sea, tokens_crc32 was (\w{8}) and is now (?!\1)\w{8}. results: none", verdict(capsys)
    )
    assert list(Path("runs/tiny-repeated").rglob("results.json")) == []


def test_other_settings_are_told_and_the_first_figure_that_differs(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--model.optimizer.lr", "1e-3", "--trainer.limit_val_batches", "1", "--name", "slower"]
    assert main(["fit", "--repeat", "runs/tiny", *given]) == 1
    out, err = capsys.readouterr()
    told = re.fullmatch(
        f"done. did not match {RUN}: round 1, (.*), (.*), perplexity was (.*) and is now (.*); "
        "the weights of 3 of 3 nodes differ. results: runs/slower/version_0 .*",
        out.splitlines()[-1],
    )
    assert told is not None
    node, moment, *values = told.groups()
    found = [
        record["rounds"][0]["nodes"][node][moment]["perplexity"]
        for record in (results(), results(Path("runs/slower/version_0")))
    ]
    assert found[0] != found[1]
    assert values == [str(value) for value in found]
    assert "worldlm: model.optimizer.lr was 0.006 and is now 0.001" in err.splitlines()


def test_weights_that_were_not_written_down_are_those_of_the_checkpoint() -> None:
    first = read_first_run(RUN)
    expected = first.content.pop("final_weights")
    assert final_weights(first) == expected
    first.content["rounds_done"] = 1
    assert final_weights(first) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"finished": False}, "is not finished: finish it first"),
        ({"changes": [{"round": 1}]}, "its topology changed"),
        ({"initial_weights": None}, "went on from the checkpoint of another run"),
        ({"rounds": 3}, "not as worldlm writes it: rounds: must be a list"),
    ],
)
def test_what_cannot_be_repeated(change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("runs/other/version_0")
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints/last.ckpt").touch()
    (folder / "config.yaml").touch()
    (folder / "results.json").write_text(json.dumps({**results(), **change}))
    assert main(["fit", "--repeat", "runs/other"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--repeat"], "--repeat takes one run"),
        (["--repeat", "runs/tiny", "--recipe", "tiny.yaml"], "leave --recipe out"),
        (["--repeat", "runs/tyny"], "did you mean 'tiny'"),
        (
            ["--repeat", "runs/tiny", "--ckpt_path", str(RUN / "checkpoints/last.ckpt")],
            "the run that is to be repeated",
        ),
    ],
)
def test_mistakes_are_one_line(given: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_repetition_that_was_stopped_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    Path("stop").touch()
    assert main(["fit", "--repeat", "runs/tiny", "--name", "halting"]) == 143
    there = "runs/halting/version_0/checkpoints/last.ckpt"
    again = f"fit --repeat {RUN} --name halting --ckpt_path {there}"
    assert f"stopped; resume with: worldlm {again}. results so far" in verdict(capsys)
    assert main(again.split()) == 0
    assert os.path.getsize(there)
    assert "done. matched" in verdict(capsys)
