"""A world of models of transformers: training, resuming, export, generation and initial weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CONFIGS
from pair_world import PAIR_DATA, PAIR_TREE, write_pair

from worldlm.callbacks import LastCheckpoint, TokenRows
from worldlm.cli import main
from worldlm.models import LanguageModule, OptimizerSettings, Split, Transformer
from worldlm.topology import Topology

Make = Callable[..., Any]


def make(name: str, vocab_size: int = 32, seq_len: int = 8) -> LanguageModule:
    config = {**CONFIGS[name], "vocab_size": vocab_size}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LanguageModule(
            split=Split(last_blocks=1),
            optimizer=OptimizerSettings(lr=1e-2, warmup_steps=1),
            transformer=Transformer(config=config, max_seq_len=seq_len),
        )


@pytest.mark.parametrize(
    "name", ["llama_untied", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpt2", "qwen2"))]
)
def test_a_run_that_stops_goes_on_bit_for_bit(
    name: str, busy_tree: Topology, fit: Make, whole_method: Make, snapshot: Make, differences: Make, tmp_path: Path
) -> None:
    def train(folder: str, **options: Any) -> Any:
        callbacks = [TokenRows(), *whole_method(), LastCheckpoint(keep_every_n_rounds=1)]
        return fit(busy_tree, callbacks, module=make(name), default_root_dir=tmp_path / folder, max_epochs=2, **options)

    whole = snapshot(train("whole"))
    kept = tmp_path / "whole" / "checkpoints" / "round_1.ckpt"
    again = snapshot(train("again", resume=kept))
    for part in ("world", "optimizers", "live"):
        assert differences(again[part], whole[part]) == [], part
    start, rows = make(name), TokenRows().find(make(name))
    states = whole["world"]["states"]
    for key, tensor in start.named_parameters():
        assert not torch.equal(states["world"]["parameters"][key], tensor), key
    assert len(rows) == (2 if name == "llama_untied" else 1)


RECIPE = (
    """
seed_everything: 1
federation: {topology: tree.yaml}
model:
  transformer: {config: CONFIG, max_seq_len: 32}
  split: {last_blocks: 1}
  optimizer: {lr: 3.0e-3, warmup_steps: 2}"""
    + PAIR_DATA
)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two texts, a topology, and a recipe whose model is described by its sizes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["worldlm"])
    write_pair(tmp_path)
    config = {**CONFIGS["llama"], "vocab_size": 257}
    Path("llama.yaml").write_text(RECIPE.replace("CONFIG", json.dumps(config)))
    return tmp_path


def run(line: str, expected: int = 0) -> None:
    assert main(line.split()) == expected, line


def test_from_a_recipe_to_a_folder_and_back(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM

    fit = "fit --recipe llama.yaml --recipe methods/worldlm --trainer.enable_progress_bar false"
    run(fit)
    run("export runs/llama-worldlm --node a --out model_of_a")
    run("generate runs/llama-worldlm sea --node a --max_new_tokens 8")
    run("evaluate runs/llama-worldlm")
    run("report runs/llama-worldlm")
    card = Path("model_of_a/README.md").read_text()
    assert "llama: 3 blocks of width 32, trained on 32 tokens at a time, a vocabulary of 257" in card
    assert "- llama" in card

    theirs = AutoModelForCausalLM.from_pretrained("model_of_a")
    checkpoint = torch.load("runs/llama-worldlm/version_0/checkpoints/last.ckpt", weights_only=True)
    ours = checkpoint["loops"]["fit_loop"]["state_dict"]["world"]["states"]["a"]["parameters"]
    for name, parameter in theirs.named_parameters():
        assert torch.equal(parameter, ours[f"model.{name}"]), name

    # the folder describes the next model, and has its initial weights
    folder = Path("llama.yaml").read_text().replace(json.dumps({**CONFIGS["llama"], "vocab_size": 257}), "model_of_a")
    Path("again.yaml").write_text(folder)
    run(fit.replace("llama.yaml", "again.yaml") + " --model.init_from model_of_a --name again --trainer.max_epochs 1")
    start = torch.load("runs/again/version_0/checkpoints/last.ckpt", weights_only=True)
    reference = start["loops"]["fit_loop"]["state_dict"]["world"]["reference"]
    for name, tensor in reference.items():
        assert torch.equal(tensor, ours[name]), name
    run("topology estimate --recipe again.yaml --recipe methods/worldlm --tokens_per_second 1000")
    capsys.readouterr()
    # settings of a layer above: sizes, and mistakes
    run(fit.replace("llama.yaml", "again.yaml") + " --name longer --model.transformer.max_seq_len 16")
    run(fit + " --model.transformer.max_seq_lenn 16", expected=2)
    assert "did you mean" in capsys.readouterr().err
    run(fit + " --model.architecture.d_model 16", expected=2)
    assert "num_blocks is 0: it must be at least 1" in capsys.readouterr().err
    run(fit + " --model.transformer.config nowhere", expected=2)
    assert "nowhere: it must be a folder with a config.json" in capsys.readouterr().err


def test_example_privacy(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    privacy = "settings: {example_privacy: {noise_multiplier: 1.0, clip_norm: 1.0, unit: block}}"
    Path("tree.yaml").write_text(PAIR_TREE.replace("{name: a, corpus: a}", f"{{name: a, corpus: a, {privacy}}}"))
    fit = "fit --recipe llama.yaml --recipe methods/worldlm --trainer.enable_progress_bar false"
    run(fit)
    assert "example epsilon" in capsys.readouterr().out
    for family in ("gemma", "mixtral"):
        config = json.dumps({**CONFIGS[family], "vocab_size": 257})
        Path(f"{family}.yaml").write_text(RECIPE.replace("CONFIG", config))
        run(fit.replace("llama.yaml", f"{family}.yaml"), expected=2)
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("worldlm: "))
        assert "example_privacy at a is not possible with this model: the gradients of single examples" in line
        assert f"not verified for {family}; choose one of gpt2, gpt_neox, llama, mistral, qwen2, qwen3" in line
        assert ("model.lora" in line) == (family == "gemma")
        assert line.endswith("or protect the updates of the node with privacy")
