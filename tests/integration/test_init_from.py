"""Worlds that start from trained weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tested_family import own_model_only
from torch import Tensor

from worldlm.callbacks import KeepTokenizer, LastCheckpoint, NodeMetrics, Record
from worldlm.data import ByteTokenizer
from worldlm.federation.parameters import weights_digest
from worldlm.models import Architecture, LanguageModule, OptimizerSettings, Split
from worldlm.models.hugging_face import mpt_config
from worldlm.topology import Topology

Make = Callable[..., Any]
pytestmark = own_model_only("the folders are those of an MPT")
SIZES = Architecture(num_blocks=2, d_model=16, num_heads=2, max_seq_len=8, vocab_size=32)


def starting_from(origin: Path | str, sizes: Architecture = SIZES) -> LanguageModule:
    split = Split(keys=(r"blocks\.1\.(norm_1|attn)\.",), values=(r"blocks\.1\.", r"norm_f\."))
    return LanguageModule(sizes, split, OptimizerSettings(lr=1e-2, warmup_steps=1), str(origin))


def weights_of(module: LanguageModule) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


@pytest.fixture
def pair(star: Make) -> Topology:
    """A world of two nodes."""
    topology: Topology = star("ab")
    return topology


@pytest.fixture
def folder(tmp_path: Path, make_module: Make) -> Path:
    """A Hugging Face folder with the weights of seed 5."""
    path = tmp_path / "theirs"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(mpt_config(SIZES)))
    weights = {name.removeprefix("model."): tensor for name, tensor in weights_of(make_module(5)).items()}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_every_node_starts_from_a_folder(folder: Path, pair: Topology, fit: Make, make_module: Make) -> None:
    expected = weights_of(make_module(5))
    from_folder = fit(pair, [NodeMetrics(), Record()], module=starting_from(folder))
    from_module = fit(pair, [NodeMetrics(), Record()], module=make_module(5))
    content = json.loads((from_folder.folder / "results.json").read_text())
    assert content["initial_weights"] == weights_digest(expected)
    for name, tensor in from_folder.world.reference.items():
        assert torch.equal(tensor, expected[name])
    for name, state in from_module.world.states.items():
        weights = from_folder.world.states[name].parameters
        assert all(torch.equal(weights[key], value) for key, value in state.parameters.items())


def test_sharded_weights_with_an_explicit_head_are_read(folder: Path, pair: Topology, fit: Make) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["transformer.wte.weight"].clone()
    shards = {f"model-{i}.safetensors": names for i, names in enumerate((list(weights)[:5], list(weights)[5:]))}
    for file, names in shards.items():
        save_file({name: weights[name] for name in names}, folder / file)
    index = {"weight_map": {name: file for file, names in shards.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    module = starting_from(folder)
    fit(pair, [], module=module, limit_val_batches=0, max_epochs=0)
    assert torch.equal(module.model.transformer.wte.weight, weights["lm_head.weight"])


def test_a_node_of_a_run_at_any_kept_round(pair: Topology, fit: Make, tmp_path: Path) -> None:
    first = fit(pair, [LastCheckpoint(keep_every_n_rounds=1)], limit_val_batches=0)
    run = LastCheckpoint.path(first).parents[1]
    expected = {name: value.clone() for name, value in first.world.states["b"].parameters.items()}
    for origin, same in ((f"{run}:b", True), (f"{run}:b@2", True), (f"{run}:b@1", False), (f"{run}:a", False)):
        module = starting_from(origin)
        fit(pair, [], module=module, limit_val_batches=0, max_epochs=0, default_root_dir=tmp_path / "second")
        assert all(torch.equal(expected[name], value) for name, value in module.named_parameters()) is same


def test_a_resumed_run_does_not_read_the_weights_again(folder: Path, pair: Topology, fit: Make) -> None:
    whole = fit(pair, [LastCheckpoint(keep_every_n_rounds=1)], module=starting_from(folder), limit_val_batches=0)
    (folder / "model.safetensors").unlink()
    first_round = LastCheckpoint.path(whole).with_name("round_1.ckpt")
    resumed = fit(pair, [], module=starting_from(folder), resume=first_round, limit_val_batches=0)
    for name, state in whole.world.states.items():
        weights = resumed.world.states[name].parameters
        assert all(torch.equal(weights[key], value) for key, value in state.parameters.items())


def test_a_second_fit_of_a_module_continues(folder: Path, pair: Topology, trainer_for: Make, make_data: Make) -> None:
    module, trainer = starting_from(folder), trainer_for(pair, [], limit_val_batches=0, max_epochs=1)
    trainer.fit(module, datamodule=make_data())
    before = {name: value.clone() for name, value in trainer.world.states["a"].parameters.items()}
    trainer.fit(module, datamodule=make_data())  # max_epochs is reached
    assert all(torch.equal(trainer.world.states["a"].parameters[name], value) for name, value in before.items())


def test_checkpoints_record_init_from_and_load_without_it(folder: Path) -> None:
    module = starting_from(folder)
    assert module.hparams["init_from"] == str(folder)
    old = {name: value for name, value in module.hparams.items() if name != "init_from"}
    assert LanguageModule.from_hyper_parameters(old).init_from is None


def error_lines(origin: Path | str, sizes: Architecture = SIZES) -> list[str]:
    with pytest.raises(ValueError) as caught:
        starting_from(origin, sizes).check_init_from()
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"init_from is {origin}: ") for line in lines)
    return [line.removeprefix(f"init_from is {origin}: ") for line in lines]


def test_another_architecture_is_rejected_with_every_difference(folder: Path, pair: Topology, fit: Make) -> None:
    assert error_lines(folder, replace(SIZES, num_blocks=3, vocab_size=64, alibi_bias_max=4)) == [
        f"{folder}: n_layers is 2, but num_blocks of the model is 3",
        f"{folder}: vocab_size is 32, but vocab_size of the model is 64",
        f"{folder}: alibi_bias_max is 8, but the model needs 4",
    ]
    run = LastCheckpoint.path(fit(pair, [LastCheckpoint()], limit_val_batches=0)).parents[1]
    assert error_lines(f"{run}:a", replace(SIZES, d_model=32)) == [
        "d_model is 16 in the saved model, but 32 in this one"
    ]
    starting_from(folder, replace(SIZES, max_seq_len=99)).check_init_from()  # no weight depends on it
    starting_from(f"{run}:a", replace(SIZES, max_seq_len=99)).check_init_from()


def test_an_invalid_origin_is_rejected(folder: Path, tmp_path: Path, pair: Topology, fit: Make) -> None:
    run = LastCheckpoint.path(fit(pair, [LastCheckpoint()], limit_val_batches=0)).parents[1]
    assert (
        "there is no such folder; it must be a Hugging Face folder, a model of the Hub, OWNER"
        in error_lines(tmp_path / "none")[0]
    )
    assert f"add a node of the run, as {run}:NODE" in error_lines(run)[0]
    assert "has no node 'aa'; it has world, a, b" in error_lines(f"{run}:aa")[0]
    assert "'x' is not a round" in error_lines(f"{run}:a@x")[0]
    assert "round 7 was not kept; there is only the last" in error_lines(f"{run}:a@7")[0]
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert error_lines(folder) == [f"{folder}: the type of the model is 'llama', not 'mpt'"]


def test_weights_that_do_not_fit_are_rejected(folder: Path, pair: Topology, fit: Make) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["transformer.norm_f.weight"]
    weights["transformer.blocks.0.ffn.up_proj.weight"] = torch.zeros(3, 16)
    weights["transformer.norm_f.bias"] = torch.zeros(16)
    save_file(weights, file)
    with pytest.raises(ValueError) as caught:
        fit(pair, [], module=starting_from(folder))
    assert [line.split(": ", 1)[1] for line in str(caught.value).splitlines()] == [
        "the weights model.transformer.norm_f.weight are missing",
        "the model has no weights model.transformer.norm_f.bias",
        "the weights model.transformer.blocks.0.ffn.up_proj.weight have the shape [3, 16], "
        "but the model needs [64, 16]",
    ]
    file.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="model.safetensors cannot be read as safetensors"):
        fit(pair, [], module=starting_from(folder))
    file.rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="does not exist; pytorch_model.bin is a pickle, which may run any code"):
        fit(pair, [], module=starting_from(folder))


def test_another_tokenizer_logs_a_warning(
    folder: Path, pair: Topology, fit: Make, make_data: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> list[str]:
        data, module = make_data(), starting_from(folder)
        data.tokenizer = ByteTokenizer()
        caplog.clear()
        with caplog.at_level(logging.WARNING, "worldlm"):
            trainer = fit(pair, [KeepTokenizer()], module=module, data=data, limit_val_batches=0, max_epochs=1)
        assert (trainer.folder / "tokenizer.json").read_text() == ByteTokenizer().to_json()
        return [record.getMessage().removeprefix(f"init_from is {folder}: ") for record in caplog.records]

    theirs = folder / "tokenizer.json"
    assert warnings() == [
        "there is no tokenizer.json beside the weights, so their tokenizer cannot be compared with this run's"
    ]
    theirs.write_text(ByteTokenizer().to_json())
    assert warnings() == []
    content = json.loads(ByteTokenizer().to_json())
    content["model"]["vocab"] |= {"a": 98, "b": 97}
    theirs.write_text(json.dumps(content))
    assert warnings() == [
        "the weights were trained with another tokenizer, so their embeddings do not fit the tokens of this run"
    ]
