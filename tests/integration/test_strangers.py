"""Files from other people that are really pickles: no command executes anything in the files that it reads."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from worldlm.cli import main
from worldlm.distributed.transport import _unpack
from worldlm.models import Architecture
from worldlm.models.hugging_face import mpt_config
from worldlm.storage.pages import Pages

RECIPE = """\
federation: {topology: cove.yaml}
model:
  architecture: {num_blocks: 2, d_model: 8, num_heads: 2, max_seq_len: 8, vocab_size: 257}
  split: {keys: ['blocks\\.1\\.(norm_1|attn)\\.'], values: ['blocks\\.1\\.', 'norm_f\\.']}
  optimizer: {lr: 6e-3, warmup_steps: 2}
data:
  cache_dir: cache
  batch_size: 4
  corpora: {sea: {class_path: worldlm.data.TextFiles, init_args: {train: sea.txt, validation: sea_too.txt}}}
trainer:
  max_epochs: 1
  callbacks: [{class_path: worldlm.callbacks.Averaging, init_args: {parts: [backbone, keys, values]}}]
"""
TOPOLOGY = "name: cove\nsettings: {num_local_steps: 4}\nroot: {name: sea, corpus: sea}\n"
RUN = "runs/cove/version_0"


class Evil:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return _create_file, ("Path('executed').touch()",)


def _create_file(code: str) -> None:
    exec(code)


def _saved(**options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": Evil(), "loops": {"fit_loop": Evil()}}, buffer, **options)
    return buffer.getvalue()


def _array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Evil()], object), allow_pickle=True)
    return buffer.getvalue()


def _tagged() -> bytes:
    return f"a: !!python/object/apply:{__name__}._create_file [\"Path('executed').touch()\"]\n".encode()


PAYLOADS: dict[str, Callable[[], bytes]] = {
    "pickle": lambda: pickle.dumps(Evil()),
    "protocol 0": lambda: pickle.dumps(Evil(), protocol=0),
    "torch": _saved,
    "torch before 1.6": lambda: _saved(_use_new_zipfile_serialization=False),
    "npy": _array,
    "yaml": _tagged,
}


@pytest.fixture(scope="module")
def cove(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a finished run."""
    folder = tmp_path_factory.mktemp("cove")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["worldlm"])
        Path("cove.yaml").write_text(TOPOLOGY)
        Path("tiny.yaml").write_text(RECIPE)
        Path("sea.txt").write_text("wave after wave, salt; " * 40)
        Path("sea_too.txt").write_text("wave after wave, and the end" * 10)
        assert main(["fit", "--recipe", "tiny.yaml", "--name", "cove"]) == 0
    return folder


@pytest.fixture(autouse=True)
def working_folder(cove: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Change to a copy of the folder, and check that nothing was executed there."""
    folder = tmp_path / "copy"
    shutil.copytree(cove, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["worldlm"])
    yield folder
    assert not Path("executed").exists()


@pytest.fixture(params=["pickle", "torch"])
def payload(request: pytest.FixtureRequest) -> bytes:
    return PAYLOADS[request.param]()


@pytest.fixture
def run_command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str]]]:
    """Return a function that runs a command, and returns its status and the lines of its errors."""

    def carry_out(*given: str) -> tuple[int, list[str]]:
        capsys.readouterr()
        status = main(given)
        text = capsys.readouterr().err
        assert "Traceback" not in text
        return status, [line.removeprefix("worldlm: ") for line in text.splitlines() if line.startswith("worldlm: ")]

    return carry_out


RunCommand = Callable[..., tuple[int, list[str]]]


@pytest.mark.parametrize("payload", PAYLOADS, indirect=True)
def test_the_payloads_would_execute(payload: bytes) -> None:
    """Otherwise the other tests of this module would prove nothing."""
    readers: list[Callable[[io.BytesIO], object]] = [
        lambda file: torch.load(file, weights_only=False),
        pickle.load,
        lambda file: np.load(file, allow_pickle=True),
        yaml.unsafe_load,
    ]
    for read in readers:
        try:
            read(io.BytesIO(payload))
        except Exception:
            continue
    Path("executed").unlink()


@pytest.mark.parametrize("payload", ["pickle", "torch", "torch before 1.6"], indirect=True)
@pytest.mark.parametrize(
    "command",
    [
        ["fit", "--recipe", "tiny.yaml", "--ckpt_path", f"{RUN}/checkpoints/last.ckpt"],
        ["fit", "--recipe", "tiny.yaml", "--name", "cove", "--ckpt_path", "last"],
        ["fit", "--recipe", "tiny.yaml", "--model.init_from", "runs/cove:sea"],
        ["validate", "--recipe", "tiny.yaml", "--name", "cove", "--ckpt_path", "last"],
        ["export", "runs/cove", "--node", "sea", "--out", "out"],
        ["generate", "runs/cove", "--node", "sea", "wave"],
        ["evaluate", "runs/cove"],
    ],
    ids=lambda command: " ".join(command[:1] + command[3:4]),
)
def test_a_checkpoint(payload: bytes, command: list[str], run_command: RunCommand) -> None:
    Path(f"{RUN}/checkpoints/last.ckpt").write_bytes(payload)
    status, lines = run_command(*command)
    assert status == 2
    assert len(lines) == 1
    assert "last.ckpt cannot be read as a checkpoint" in lines[0]


def test_a_checkpoint_that_would_not_fit_into_memory(run_command: RunCommand) -> None:
    path = Path(f"{RUN}/checkpoints/last.ckpt")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("last/data.pkl", bytes(10_000_000))
    status, lines = run_command("generate", "runs/cove", "--node", "sea", "wave")
    assert (status, len(lines)) == (2, 1)
    assert "last.ckpt cannot be read as a checkpoint: it is compressed" in lines[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hyper_parameters", 3),
        ("hyper_parameters.architecture.num_blocks", "x"),
        ("hyper_parameters.split", None),
        ("loops.fit_loop", 3),
        ("loops.fit_loop.epoch_progress.current", {}),
        ("loops.fit_loop.epoch_progress.current.processed", [1]),
        ("loops.fit_loop.state_dict.world", True),
        ("loops.fit_loop.state_dict.world.topology", {"sea": ["bay"]}),
        ("loops.fit_loop.state_dict.world.states", {}),
        ("loops.fit_loop.state_dict.world.states.sea.parameters", 3),
        ("loops.fit_loop.state_dict.world.states.sea.parameters", {}),
        ("loops.fit_loop.state_dict.world.states.sea.parameters", {"a.b": 3}),
    ],
)
def test_a_forged_checkpoint(key: str, value: object, run_command: RunCommand) -> None:
    """The file holds plain values, but not those that a run writes."""
    path = _forge(key, value)
    status, lines = run_command("generate", "runs/cove", "--node", "sea", "wave")
    assert (status, len(lines)) == (2, 1)
    assert f"{path}" in lines[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hyper_parameters", 3),
        ("callbacks", [3]),
        ("loops.fit_loop.epoch_progress.current", 3),
        ("loops.fit_loop.epoch_progress.total.completed", []),
        ("loops.fit_loop.state_dict.active", {}),
        ("loops.fit_loop.state_dict.active", "nobody"),
        ("loops.fit_loop.state_dict.optimizers.sea.optimizer", None),
        ("loops.fit_loop.state_dict.optimizers.sea.optimizer.param_groups", [3]),
        ("loops.fit_loop.state_dict.optimizers.sea.optimizer.param_groups", []),
        ("loops.fit_loop.state_dict.optimizers.sea.optimizer.state", {0: {"exp_avg": torch.zeros(3)}}),
        ("loops.fit_loop.state_dict.optimizers.sea.schedulers", [{"last_epoch": "x"}]),
        ("loops.fit_loop.state_dict.world.reference", {"a.b": torch.zeros(3)}),
        ("loops.fit_loop.state_dict.world.states.sea", {}),
        ("loops.fit_loop.state_dict.world.states.sea.num_steps", "x"),
        ("loops.fit_loop.state_dict.world.states.sea.attention", {"sea": torch.zeros(3)}),
        ("loops.fit_loop.state_dict.world.states.sea.uploads", [{"node": "bay"}]),
        ("loops.fit_loop.state_dict.world.states.sea.memory.NodeMetrics", [3]),
        ("loops.fit_loop.state_dict.world.states.sea.memory.NodeMetrics.before", {"sea": 3.0}),
        ("loops.fit_loop.state_dict.world.states.sea.parameters", {"a.b": torch.zeros(3)}),
    ],
)
def test_resuming_from_a_forged_checkpoint(key: str, value: object, run_command: RunCommand) -> None:
    path = _forge(key, value)
    status, lines = run_command("fit", "--recipe", "tiny.yaml", "--ckpt_path", str(path), "--trainer.max_epochs", "2")
    assert (status, len(lines)) == (2, 1)
    assert f"{path}" in lines[0] or "the checkpoint" in lines[0]


@pytest.mark.parametrize("value", [3, {}, {"a.b": torch.zeros(3)}])
def test_validating_a_forged_checkpoint(value: object, run_command: RunCommand) -> None:
    """A node with missing weights must not be measured with the weights of the node before it."""
    path = _forge("loops.fit_loop.state_dict.world.states.sea.parameters", value)
    status, lines = run_command("validate", "--recipe", "tiny.yaml", "--ckpt_path", str(path))
    assert (status, len(lines)) == (2, 1)
    assert f"{path}" in lines[0] or "of sea are" in lines[0]


def _forge(key: str, value: object) -> Path:
    """Set a value in the run's checkpoint, at a dotted key."""
    path = Path(f"{RUN}/checkpoints/last.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    *above, last = key.split(".")
    within = checkpoint
    for name in above:
        within = within[name]
    within[last] = value
    torch.save(checkpoint, path)
    return path


@pytest.mark.parametrize("command", [["report", "runs/cove"], ["compare", "--read", "runs/cove"]])
def test_a_record(payload: bytes, command: list[str], run_command: RunCommand) -> None:
    Path(f"{RUN}/results.json").write_bytes(payload)
    status, lines = run_command(*command)
    assert status == 2
    assert len(lines) == 1
    assert "results.json: no record of a run" in lines[0]


def test_a_record_in_a_list(payload: bytes, run_command: RunCommand) -> None:
    Path(f"{RUN}/results.json").write_bytes(payload)
    assert run_command("runs") == (0, [])


@pytest.mark.parametrize("payload", ["pickle", "protocol 0", "yaml"], indirect=True)
@pytest.mark.parametrize("command", [["evaluate", "runs/cove"], ["report", "runs/cove"]])
def test_a_config(payload: bytes, command: list[str], run_command: RunCommand) -> None:
    Path(f"{RUN}/config.yaml").write_bytes(payload)
    status, lines = run_command(*command)
    assert (status, len(lines)) == ((2, 1) if command[0] == "evaluate" else (0, 0))


@pytest.mark.parametrize("payload", ["pickle", "protocol 0", "yaml"], indirect=True)
@pytest.mark.parametrize("kind", ["recipe", "topology"])
def test_a_recipe_or_topology(kind: str, payload: bytes, run_command: RunCommand) -> None:
    Path("tiny.yaml" if kind == "recipe" else "cove.yaml").write_bytes(payload)
    status, lines = run_command("fit", "--recipe", "tiny.yaml")
    assert (status, len(lines)) == (2, 1)
    assert lines[0].startswith("tiny.yaml:1: " if kind == "recipe" else ("cove.yaml:1: ", "tiny.yaml:1: cove.yaml:1: "))


def test_a_tokenizer(payload: bytes, run_command: RunCommand) -> None:
    Path("tok").mkdir()
    Path("tok/tokenizer.json").write_bytes(payload)
    status, lines = run_command("prepare", "--recipe", "tiny.yaml", "--data.tokenizer", "tok")
    assert (status, len(lines)) == (2, 1)
    assert "tokenizer.json' cannot be read" in lines[0]


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.safetensors", "config.json", "model.safetensors.index.json"]
)
def test_a_folder_of_weights(name: str, payload: bytes, run_command: RunCommand) -> None:
    Path("mpt").mkdir()
    sizes = Architecture(num_blocks=2, d_model=8, num_heads=2, max_seq_len=8, vocab_size=257)
    Path("mpt/config.json").write_text(json.dumps(mpt_config(sizes)))
    Path("mpt", name).write_bytes(payload)
    status, lines = run_command("fit", "--recipe", "tiny.yaml", "--model.init_from", "mpt")
    assert (status, len(lines)) == (2, 1)
    expected = {
        "pytorch_model.bin": "model.safetensors does not exist; pytorch_model.bin is a pickle",
        "model.safetensors": "model.safetensors cannot be read as safetensors",
    }
    assert expected.get(name, f"{name} cannot be read") in lines[0]


@pytest.mark.parametrize("payload", ["pickle", "npy"], indirect=True)
def test_packed_text_is_packed_again(payload: bytes, run_command: RunCommand) -> None:
    packed = [path for path in Path("cache").rglob("*") if path.is_file()]
    assert {path.suffix for path in packed} >= {".bin", ".json"}
    for path in packed:
        path.write_bytes(payload)
    assert run_command("prepare", "--recipe", "tiny.yaml") == (0, [])


def test_a_page(payload: bytes) -> None:
    pages = Pages(Path("pages"))
    (paged,) = pages.put([torch.arange(4096)])
    (file,) = Path("pages").glob("*.safetensors")
    file.write_bytes(payload)
    with pytest.raises(OSError, match="does not hold what was written into it"):
        paged + 1


@pytest.mark.parametrize("payload", ["torch", "torch before 1.6"], indirect=True)
def test_a_message(payload: bytes) -> None:
    sent: Tensor = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        _unpack(sent)
