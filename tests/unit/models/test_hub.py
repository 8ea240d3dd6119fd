"""Models of the Hugging Face Hub, from a server on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_hub import FakeHub, fake_hub
from families import CONFIGS
from safetensors.torch import load_file, save_file

from worldlm.models import LanguageModule, Split, Transformer
from worldlm.models.initial_weights import initial_weights

NAME = "owner/name@v1"
PLACE = "/owner/name/resolve/v1/"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with fake_hub(monkeypatch) as served:
        served.commit = "0" * 40
        yield served


@pytest.fixture(scope="module")
def module() -> LanguageModule:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = Transformer(config=CONFIGS["llama"], max_seq_len=16)
        return LanguageModule(transformer=transformer, split=Split(last_blocks=1))


@pytest.fixture
def files(module: LanguageModule, tmp_path: Path) -> dict[str, bytes]:
    """The files of a folder of the model."""
    folder = tmp_path / "written"
    folder.mkdir()
    module.architecture.write_folder(folder, dict(module.named_parameters()))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def sharded(files: dict[str, bytes], folder: Path) -> dict[str, bytes]:
    """Return the files with the weights in two of them."""
    weights = load_file(folder / "written" / "model.safetensors")
    shards = {f"{number}.safetensors": dict(list(weights.items())[number::2]) for number in (0, 1)}
    for name, tensors in shards.items():
        save_file(tensors, folder / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: name for name, tensors in shards.items() for key in tensors}}
    return {
        "config.json": files["config.json"],
        "model.safetensors.index.json": json.dumps(index).encode(),
        **{name: (folder / name).read_bytes() for name in shards},
    }


@pytest.mark.parametrize("in_shards", [False, True])
def test_a_model_is_fetched_once(
    in_shards: bool, module: LanguageModule, files: dict[str, bytes], hub: FakeHub, tmp_path: Path
) -> None:
    served = sharded(files, tmp_path) if in_shards else files
    hub.files = {PLACE + name: content for name, content in served.items()}
    hub.files[PLACE + "pytorch_model.bin"] = b"a pickle"
    transformer = Transformer(config=NAME, max_seq_len=8)
    assert {line.rpartition("/")[2] for line in hub.requests} == {"config.json"}
    assert transformer.differences(dict(module.hparams)) == []
    parameters = dict(module.named_parameters())
    found = initial_weights(NAME, transformer, parameters)
    assert all(torch.equal(found[name], parameter) for name, parameter in parameters.items())
    assert not any(line.endswith("pytorch_model.bin") for line in hub.requests)
    hub.files, hub.status = {}, 503  # the cache has it
    again = initial_weights(NAME, Transformer(config=NAME, max_seq_len=8), parameters)
    assert all(torch.equal(again[name], parameter) for name, parameter in parameters.items())


def test_a_folder_takes_precedence(files: dict[str, bytes], hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "owner").mkdir()
    (tmp_path / "written").rename(tmp_path / NAME)
    assert Transformer(config=NAME, max_seq_len=8).model_type == "llama"
    assert hub.requests == []


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (404, "EntryNotFound", "the repository has no config.json"),
        (404, "RepoNotFound", r"no file, folder or repository on the Hub has that name \(if it is private, .*"),
        (404, "RevisionNotFound", "the repository has no revision 'v1'"),
        (503, "", r"config.json cannot be fetched from the Hugging Face Hub \(.*503.*; without a network, give a path"),
    ],
)
def test_why_it_cannot_be_fetched(status: int, code: str, expected: str, hub: FakeHub) -> None:
    hub.status, hub.code = status, code
    with pytest.raises(ValueError, match=f"^transformer.config is {NAME}: {expected}$"):
        Transformer(config=NAME, max_seq_len=8)


@pytest.mark.parametrize("name", ["owner/name", "owner", "a/b/c@v1", "@v1"])
def test_a_name_without_a_revision_is_a_folder(name: str, hub: FakeHub) -> None:
    with pytest.raises(ValueError, match=r"it must be a folder with a config.json, or a name on .*, OWNER/NAME@REVISI"):
        Transformer(config=name, max_seq_len=8)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (None, "the repository has no safetensors, neither model.safetensors nor model.safetensors.index.json"),
        (b"{", "its model.safetensors.index.json does not say which files have the weights"),
        (b'{"weight_map": 1}', "its model.safetensors.index.json does not say which files have the weights"),
        (
            b'{"weight_map": {"a": "../x.safetensors"}}',
            "its .* names '../x.safetensors', which is no safetensors file.*",
        ),
        (b'{"weight_map": {"a": "x.bin"}}', "its .* names 'x.bin', which is no safetensors file of the repository"),
    ],
)
def test_weights_that_cannot_be_used(
    index: bytes | None, expected: str, module: LanguageModule, files: dict[str, bytes], hub: FakeHub
) -> None:
    hub.files = {PLACE + "config.json": files["config.json"]}
    if index is not None:
        hub.files[PLACE + "model.safetensors.index.json"] = index
    with pytest.raises(ValueError, match=f"^init_from is {NAME}: {expected}$"):
        initial_weights(NAME, module.architecture, dict(module.named_parameters()))
