"""Folders of models that are broken, or that someone wrote to do harm: each is handled, or an error of one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CONFIGS, write_base
from safetensors.torch import load_file, save_file

from worldlm.models import LanguageModule, Transformer
from worldlm.models.initial_weights import initial_weights
from worldlm.topology.errors import UserError

CANNOT = "transformers cannot use transformer.config: "
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a tiny Llama."""
    write_base(tmp_path / "base", "llama")
    return tmp_path / "base"


def change_config(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))


def error_of(use: Callable[[], object]) -> str:
    with pytest.raises((ValueError, UserError)) as caught:
        use()
    (line,) = str(caught.value).splitlines()
    return line


def read(folder: Path) -> dict[str, Any]:
    module = LanguageModule(transformer=Transformer(config=CONFIGS["llama"], max_seq_len=8))
    return initial_weights(str(folder), module.architecture, dict(module.named_parameters()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_size": "many"},
            f"{CANNOT}Field 'hidden_size' expected int, got str",
        ),
        (
            {"hidden_size": None},
            f"{CANNOT}Field 'hidden_size' expected int, got None",
        ),
        ({"hidden_size": -5}, f"{CANNOT}The hidden size (-5) is not a multiple of"),
        (
            {"hidden_size": -4},
            f"{CANNOT}RuntimeError: Trying to create tensor with neg",
        ),
        ({"num_attention_heads": 0}, f"{CANNOT}ZeroDivisionError: "),
        ({"hidden_size": 10**400}, f"{CANNOT}TypeError: "),
        ({"hidden_act": "os.system"}, f"{CANNOT}KeyError: 'os.system'"),
        ({"rope_parameters": {"rope_type": "none"}}, f"{CANNOT}KeyError: "),
        (
            {"pad_token_id": 10**6},
            f"{CANNOT}AssertionError: Padding_idx must be within",
        ),
        ({"num_hidden_layers": 10**9}, "transformer.config has num_hidden_layers 1000000000: it can be at most 10,000"),
        (
            {"model_type": ["llama"]},
            "transformer.config has the model_type \"['llama']\", of which transformers has no",
        ),
        ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "transformer.config has auto_map: only models that"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_configurations(changes: dict[str, Any], message: str, folder: Path) -> None:
    change_config(folder, **changes)
    build = lambda: LanguageModule(transformer=Transformer(config=str(folder), max_seq_len=8))  # noqa: E731
    assert error_of(build).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "transformer.config needs a model_type, such as llama"),
        ("hello", "config.json cannot be read: Expecting value"),
        ("[1]", "config.json is not a JSON object"),
        ("[" * 100_000, "config.json cannot be read: it is nested too deeply"),
    ],
    ids=["empty", "no json", "list", "deep"],
)
def test_configurations_that_are_none(content: str, message: str, folder: Path) -> None:
    (folder / "config.json").write_text(content)
    assert message in error_of(lambda: Transformer(config=str(folder), max_seq_len=8))


@pytest.mark.parametrize("target", ["/dev/zero", "/nowhere", "pipe"])
def test_files_that_are_none(target: str, folder: Path) -> None:
    if target == "pipe":
        os.mkfifo(folder / "pipe")
    (folder / "config.json").rename(folder / "kept.json")
    (folder / "config.json").symlink_to(target)
    assert "it must be a folder with a config.json" in error_of(lambda: Transformer(config=str(folder), max_seq_len=8))
    (folder / "config.json").unlink()
    (folder / "kept.json").rename(folder / "config.json")
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(target)
    assert f"{WEIGHTS}: is " in error_of(lambda: read(folder))


def test_what_has_no_effect_is_ignored(folder: Path) -> None:
    expected = read(folder)
    change_config(
        folder, dtype="os", torch_dtype="bfloat16", attn_implementation="kernels-community/none", use_kernels=True,
        transformers_weights="../evil.safetensors", architectures=["Evil"],
    )  # fmt: skip
    (folder / "modeling_evil.py").write_text("raise SystemExit(99)")
    (folder / "generation_config.json").write_text("[")
    found = read(folder)
    assert all(torch.equal(found[name], value) and value.dtype == torch.float32 for name, value in expected.items())
    (folder / "adapter_config.json").write_text("{}")
    assert "has an adapter, which would change the weights: merge it into them first" in error_of(lambda: read(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model.norm.weight": torch.zeros(3, 5)},
            "the weights model.norm.weight have the shape [3, 5], but",
        ),
        ({"model.norm.weight": None}, "missing keys: model.norm.weight"),
        ({"evil.weight": torch.zeros(3)}, "unexpected keys: evil.weight"),
        ({"model.norm.weight": torch.full((32,), torch.nan)}, "model.model.norm.weight are not all finite numbers"),
    ],
    ids=["shape", "missing", "unexpected", "nan"],
)
def test_weights_of_another_model(
    change: dict[str, torch.Tensor | None], message: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = {**load_file(folder / WEIGHTS), **change}
    save_file({name: value for name, value in weights.items() if value is not None}, folder / WEIGHTS)
    capfd.readouterr()
    assert message in error_of(lambda: read(folder))
    assert "LOAD REPORT" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((2**62).to_bytes(8, "little") + b"{}", "cannot be read as safetensors: Error while deserializing header"),
        (b"", "cannot be read as safetensors: Error while deserializing header: header too small"),
        (None, "has no safetensors"),
    ],
    ids=["huge header", "empty", "none"],
)
def test_weights_that_are_none(content: bytes | None, message: str, folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    if content is not None:
        (folder / WEIGHTS).write_bytes(content)
    assert message in error_of(lambda: read(folder))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([1], f"{INDEX} is not a JSON object"),
        ({"weight_map": [1]}, f"{INDEX} does not say which files have the weights"),
        ({"weight_map": {"a": "../base/other.safetensors"}}, "names '../base/other.safetensors', which is no safetens"),
        ({"weight_map": {"a": "x.bin"}}, "names 'x.bin', which is no safetensors file of this folder"),
        ({"weight_map": {"a": "none.safetensors"}}, "none.safetensors does not exist"),
    ],
    ids=["list", "no names", "outside", "pickle", "missing"],
)
def test_an_index(index: Any, message: str, folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "other.safetensors")
    (folder / "x.bin").write_bytes(b"a pickle")
    (folder / INDEX).write_text(json.dumps(index))
    assert message in error_of(lambda: read(folder))
