"""Worlds that train and send adapters of a frozen model."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from families import CONFIGS, adapted, open_with_peft, write_base
from pair_world import PAIR_DATA, write_pair
from torch import Tensor
from torch.utils.data import DataLoader

from worldlm.callbacks import (
    Averaging,
    Compression,
    ExamplePrivacy,
    LastCheckpoint,
    ResidualExchange,
    TokenRows,
    UpdatePrivacy,
)
from worldlm.callbacks.organisation_network import OrganisationNetwork
from worldlm.cli import main
from worldlm.data import BlockBatchSampler
from worldlm.federation.parameters import PARTS, num_bytes
from worldlm.models import LanguageModule, Lora, Transformer
from worldlm.topology import Topology

Make = Callable[..., Any]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with a tiny Llama."""
    write_base(tmp_path / "base", "llama", vocab_size=32)
    return tmp_path / "base"


@pytest.fixture
def adapters() -> Lora:
    """The adapters of `make_module`; a test may replace them."""
    return Lora(rank=2)


@pytest.fixture
def make_module(base: Path, adapters: Lora) -> Make:
    """Return a builder of models with adapters, none of which has dropout."""

    def build(seed: int = 0, lora: Lora = adapters, folder: Path = base, dropout: float = 0.0) -> LanguageModule:
        assert not dropout
        return adapted(folder, lora, sizes=base, seed=seed)

    return build


class Onward(BlockBatchSampler):
    """Continues where the last epoch stopped, because Lightning requests one iterator per epoch."""

    def __iter__(self) -> Iterator[list[int]]:
        batches = [*super().__iter__()]
        self.start += self.length
        return iter(batches)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_one_node_gives_the_result_of_lightnings_trainer(
    precision: str, single: Topology, fit: Make, make_module: Make, make_data: Make, differences: Make, accelerator: str
) -> None:
    ours = fit(single, module=make_module(), max_epochs=3, precision=precision)

    blocks = make_data().blocks("a", "train")
    sampler = Onward(len(blocks), 2, 7, "alone")
    sampler.length = 3
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    theirs = pl.Trainer(
        max_epochs=3, accelerator=accelerator, precision=precision, limit_val_batches=0, enable_model_summary=False,
        **quiet,
    )  # fmt: skip
    module = make_module()
    theirs.fit(
        module,
        DataLoader(blocks, batch_sampler=sampler, collate_fn=lambda batch: batch),
        DataLoader(blocks, batch_size=4),
    )
    expected = {name: value.detach() for name, value in module.named_parameters()}
    start = dict(make_module().named_parameters())
    assert all(not torch.equal(expected[name], value) for name, value in start.items())
    assert differences(ours.world.states["alone"].parameters, expected) == []


@pytest.mark.parametrize(
    "adapters", [Lora(rank=2), pytest.param(Lora(rank=2, freeze_a=True), marks=pytest.mark.slow)], ids=["a", "frozen_a"]
)
def test_a_run_resumes_from_every_step(tree: Topology, whole_method: Make, resume_from_all: Make) -> None:
    assert resume_from_all(tree, whole_method, ("on_train_batch_end", "on_train_epoch_end")) == 2 * (6 + 1)


def test_the_frozen_weights_are_read_once(
    star: Make, trainer_for: Make, make_module: Make, make_data: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read, original = [], Transformer.read_folder
    monkeypatch.setattr(Transformer, "read_folder", lambda self, folder: read.append(folder) or original(self, folder))
    module, options = make_module(), {"limit_val_batches": 0, "default_root_dir": tmp_path / "run"}
    trainer = trainer_for(star("abcd"), [Averaging(), LastCheckpoint()], max_epochs=1, **options)
    trainer.fit(module, datamodule=make_data())
    trainer.fit(module, datamodule=make_data())
    assert len(read) == 1
    resumed = trainer_for(star("abcd"), [Averaging()], max_epochs=2, **options)
    resumed.fit(make_module(), datamodule=make_data(), ckpt_path=LastCheckpoint.path(trainer))
    assert len(read) == 2


def frozen_tensors(module: LanguageModule) -> dict[str, Tensor]:
    return {name: module.get_buffer(name) for name in module.frozen}


def tensors_in(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, dict | list | tuple):
        for value in content.values() if isinstance(content, dict) else content:
            yield from tensors_in(value)


def test_the_frozen_weights_exist_once_and_are_neither_sent_nor_stored(
    star: Make, fit: Make, make_module: Make, tmp_path: Path
) -> None:
    module = make_module()
    module.load_base()
    before = {name: (tensor, tensor.clone()) for name, tensor in frozen_tensors(module).items()}
    trainer = fit(star("abcdef"), [Averaging(parts=PARTS), LastCheckpoint()], module=module, default_root_dir=tmp_path)
    for name, tensor in frozen_tensors(module).items():
        if trainer.strategy.root_device.type == "cpu":
            assert tensor is before[name][0], name
        assert torch.equal(tensor.cpu(), before[name][1]), name

    adapters = dict(module.named_parameters())
    assert trainer.world.states["a"].parameters.keys() == adapters.keys()
    for name, state in trainer.world.states.items():
        if name != "world":
            assert state.bytes_up == state.bytes_down == 2 * num_bytes(adapters)  # one of each in two rounds
    checkpoint = torch.load(LastCheckpoint.path(trainer), weights_only=True)
    shapes = {tensor.shape for tensor in adapters.values()}
    largest = max(tensor.numel() for tensor in adapters.values())
    assert {tensor.shape for tensor in tensors_in(checkpoint) if tensor.numel() > largest} == set()
    assert {tensor.shape for tensor in tensors_in(checkpoint) if tensor.dim() == 2} == shapes
    assert checkpoint["hyper_parameters"]["base_digest"] == module.base_digest


def test_a_run_resumes_only_with_its_frozen_weights_and_its_adapters(
    star: Make, fit: Make, make_module: Make, base: Path, tmp_path: Path, snapshot: Make, differences: Make
) -> None:
    options: dict[str, Any] = {"limit_val_batches": 0, "default_root_dir": tmp_path / "run"}
    whole = fit(star(), [Averaging(), LastCheckpoint(keep_every_n_rounds=1)], module=make_module(), **options)
    kept = LastCheckpoint.path(whole).with_name("round_1.ckpt")

    moved = base.rename(tmp_path / "moved")
    (base).mkdir()
    (base / "config.json").write_text((moved / "config.json").read_text())
    again = fit(star(), [Averaging()], module=make_module(folder=moved), resume=kept, **options)
    for part in ("world", "optimizers", "live"):
        assert differences(snapshot(again)[part], snapshot(whole)[part]) == [], part

    write_base(base, "llama", vocab_size=32, seed=9)
    with pytest.raises(ValueError, match="init_from is .*: its weights are not those on which the adapters were tra"):
        fit(star(), [Averaging()], module=make_module(), resume=kept, **options)
    with pytest.raises(ValueError, match=r"another model: lora\.rank is 2 in the saved model, but 3 in this one"):
        fit(star(), [Averaging()], module=make_module(lora=Lora(rank=3)), resume=kept, **options)
    with pytest.raises(ValueError, match=r"lora\.alpha is 16\.0 in the saved model, but 4 in this one"):
        fit(star(), [Averaging()], module=make_module(lora=Lora(rank=2, alpha=4)), resume=kept, **options)


@pytest.mark.parametrize("targets", ["(q|v)_proj$", "mlp", None], ids=str)
def test_attention_residuals_and_compression(
    targets: str | None, busy_tree: Topology, fit: Make, whole_method: Make, make_module: Make, caplog: Any
) -> None:
    """The first has no values, and the second no keys, so that all nodes get equal weights."""
    callbacks = [TokenRows(), *whole_method(), Compression(up="bf16", down="int8")]
    module = make_module(lora=Lora(rank=2, targets=targets))
    empty = {"(q|v)_proj$": "values", "mlp": "keys", None: ""}[targets]
    assert set(module.partition().values()) == {*PARTS} - {empty}
    with caplog.at_level(logging.INFO):
        trainer = fit(busy_tree, callbacks, module=module, max_epochs=3)
    assert "TokenRows has no effect: the embedding is frozen" in caplog.text
    start = dict(make_module(lora=Lora(rank=2, targets=targets)).named_parameters())
    for name, state in trainer.world.states.items():
        assert all(bool(value.isfinite().all()) for value in state.parameters.values()), name
        assert any(not torch.equal(value, start[key]) for key, value in state.parameters.items()), name
    exchange = next(callback for callback in trainer.callbacks if isinstance(callback, ResidualExchange))
    assert sum(exchange.routes(trainer.world).values()) > 0


def test_privacy(star: Make, fit: Make, make_module: Make) -> None:
    examples = "example_privacy: {clip_norm: 1.0, noise_multiplier: 1.0}"
    updates = "privacy: {clip_norm: 0.5, noise_multiplier: 0.5}"
    topology = star("ab", a=f"settings: {{{examples}}}", b=f"settings: {{{updates}}}")
    method = [Averaging(parts=PARTS), UpdatePrivacy(), ExamplePrivacy()]
    trainer = fit(topology, method, module=make_module())
    figures = {
        node.name: trainer.method.node_figures(node, trainer.world.states[node.name]) for node in topology.data_nodes
    }
    assert figures["a"]["example epsilon"] > 0
    assert figures["b"]["epsilon"] > 0
    again = fit(star("ab"), [Averaging(parts=PARTS)], module=make_module())
    for name in "ab":  # noise has landed in all adapters
        for key, value in trainer.world.states[name].parameters.items():
            assert not torch.equal(value, again.world.states[name].parameters[key]), key


def test_organisations_compare_adapters_and_frozen_weights(
    star: Make, fit: Make, make_module: Make, tmp_path: Path
) -> None:
    def agreement(module: LanguageModule) -> dict[str, str]:
        trainer = fit(star(), [Averaging()], module=module, max_epochs=0, limit_val_batches=0)
        identity: Any = None
        return dict(OrganisationNetwork(identity)._agreement(trainer, module))

    def different(module: LanguageModule) -> set[str]:
        other = agreement(module)
        return {key for key, value in ours.items() if other[key] != value}

    ours = agreement(make_module())
    assert different(make_module()) == set()
    assert different(make_module(lora=Lora(rank=2, alpha=4))) == {"the adapters"}
    write_base(tmp_path / "other", "llama", vocab_size=32, seed=9)
    assert different(make_module(folder=tmp_path / "other")) == {"the weights of the frozen model (init_from)"}


# ---------------------------------------------------------------------- from the command line

RECIPE = (
    """
seed_everything: 1
federation: {topology: tree.yaml}
model:
  transformer: {config: base, max_seq_len: 32}
  init_from: base
  lora: {rank: 2}
  split: {last_blocks: 1}
  optimizer: {lr: 3.0e-3, warmup_steps: 2}"""
    + PAIR_DATA
)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two texts, a topology, a frozen model, and a recipe of adapters."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["worldlm"])
    write_pair(tmp_path)
    Path("small.yaml").write_text(RECIPE)
    write_base(Path("base"), "llama", vocab_size=257)
    return tmp_path


def run(line: str, expected: int = 0) -> None:
    assert main(line.split()) == expected, line


FIT = "fit --recipe small.yaml --recipe methods/{} --trainer.enable_progress_bar false"


def saved(name: str) -> dict[str, dict[str, Tensor]]:
    checkpoint = torch.load(f"runs/{name}/version_0/checkpoints/last.ckpt", weights_only=True)
    states = checkpoint["loops"]["fit_loop"]["state_dict"]["world"]["states"]
    return {node: dict(state["parameters"]) for node, state in states.items()}


def test_from_a_recipe_to_a_folder_of_peft(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM

    from worldlm.commands.inference.saved_run import open_run

    run(FIT.format("worldlm"))
    assert "M parameters of adapters (backbone" in capsys.readouterr().out
    run("export runs/small-worldlm --node a --out adapters")
    assert "MB of adapters, tokenizer, card" in capsys.readouterr().out
    run("export runs/small-worldlm --node a --out merged --merge")
    assert "MB of weights, tokenizer, card" in capsys.readouterr().out
    written = {path.name for path in Path("adapters").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"} <= written
    assert "model.safetensors" not in written
    card, card_of_merged = (Path(f"{folder}/README.md").read_text() for folder in ("adapters", "merged"))
    assert "library_name: peft" in card
    assert "LoRA adapters of rank 2 (3,072 parameters) for `base`" in card
    assert 'PeftModel.from_pretrained(model, "FOLDER")' in card
    assert "library_name: transformers" in card_of_merged
    assert "`base`, to which LoRA adapters of rank 2 were added" in card_of_merged

    tokens = torch.randint(0, 257, (2, 9), generator=torch.Generator().manual_seed(0))
    opened = open_run("runs/small-worldlm")
    module = opened.module().cpu()
    opened.put(module, "a")
    with torch.no_grad():
        expected = module(tokens)
        merged = AutoModelForCausalLM.from_pretrained("merged")(tokens).logits
        torch.testing.assert_close(merged, expected, rtol=0, atol=1e-6)
        assert not torch.allclose(AutoModelForCausalLM.from_pretrained("base")(tokens).logits, expected, atol=1e-4)
        peft = open_with_peft(Path("base"), Path("adapters"))
        torch.testing.assert_close(peft(tokens).logits, expected, rtol=0, atol=1e-6)


def test_commands_find_the_frozen_model(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(FIT.format("worldlm"))
    run("evaluate runs/small-worldlm")
    run("report runs/small-worldlm")
    run(f"validate {FIT.format('worldlm').removeprefix('fit ')} --ckpt_path last")
    run("topology estimate --recipe small.yaml --recipe methods/worldlm")
    run("topology estimate --recipe small.yaml --recipe methods/lora_ffa --tokens_per_second 1000")
    assert "frozen model: 144 kB, once in a process; it is neither sent nor stored" in capsys.readouterr().out
    run("generate runs/small-worldlm sea --node a --max_new_tokens 4 --temperature 0")
    text = capsys.readouterr().out
    Path("base").rename("moved")
    run("generate runs/small-worldlm sea --node a --max_new_tokens 4 --temperature 0", expected=2)
    assert "the frozen model of the run is not in base now: name its folder with --base" in capsys.readouterr().err
    run("generate runs/small-worldlm sea --node a --max_new_tokens 4 --temperature 0 --base moved")
    assert capsys.readouterr().out == text
    run("export runs/small-worldlm --node a --out adapters")  # which needs no frozen model
    run("export runs/small-worldlm --node a --out adapters --merge --base moved --force")
    assert {path.name for path in Path("adapters").iterdir()}.isdisjoint(
        {"adapter_config.json", "adapter_model.safetensors"}
    )
    write_base(Path("moved"), "llama", seed=9, vocab_size=257)
    run("evaluate runs/small-worldlm --base moved", expected=2)
    assert "init_from is moved: its weights are not those on which the adapters were trained" in capsys.readouterr().err


def test_methods_of_adapters(desk: Path) -> None:
    run(FIT.format("lora_fedsa"))
    a, b = (saved("small-lora_fedsa")[name] for name in "ab")
    start = {name: value for name, value in saved("small-lora_fedsa")["world"].items() if "lora_B" in name}
    assert all(not bool(value.any()) for value in start.values())  # the federation has no B
    assert any(not torch.equal(value, b[name]) for name, value in a.items() if "lora_B" in name)

    run(FIT.format("lora_ffa"))
    states = saved("small-lora_ffa")
    assert all("lora_A" not in name for name in states["a"])
    for name, mean in states["world"].items():
        torch.testing.assert_close(mean, (states["a"][name] + states["b"][name]) / 2)


def test_what_fit_rejects_in_one_line(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, message in (
        ("--model.lora.rank 0", "lora.rank is 0: it must be at least 1"),
        (
            "--model.lora.targets query",
            "lora.targets 'query' matches no linear layer in the blocks; there are q_proj",
        ),
        (
            "--model.init_from runs/other:world",
            "init_from is runs/other:world: there is no such folder, but lora",
        ),
    ):
        run(f"{FIT.format('worldlm')} {option}", expected=2)
        lines = [line for line in capsys.readouterr().err.splitlines() if "lora" in line]
        assert len(lines) == 1
        assert message in lines[0]
    run(FIT.format("worldlm"))
    full = CONFIGS["llama"] | {"vocab_size": 257}
    recipe = RECIPE.replace("config: base", f"config: {json.dumps(full)}").replace("  lora: {rank: 2}\n", "")
    Path("small.yaml").write_text(recipe.replace("init_from: base", "init_from: runs/small-worldlm:a"))
    run(f"{FIT.format('fedavg')} --name full", expected=2)
    assert "the run trained adapters: worldlm export --merge writes a folder" in capsys.readouterr().err
    run("export runs/small-worldlm --node a --out adapters")
    Path("small.yaml").write_text(recipe.replace("init_from: base", "init_from: adapters"))
    run(f"{FIT.format('fedavg')} --name full", expected=2)
    assert "the folder has adapters only: worldlm export --merge writes the whole model" in capsys.readouterr().err
    run("generate runs/small-worldlm sea --base nowhere", expected=2)
    assert "the frozen model of the run is not in nowhere now" in capsys.readouterr().err
