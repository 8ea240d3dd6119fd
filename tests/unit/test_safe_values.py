"""`--safe` allows no address, no folder elsewhere and no function in a setting, whatever class takes it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from jsonargparse import Namespace
from lightning.fabric.plugins import ClusterEnvironment, Precision
from lightning.pytorch import Callback
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import LayerSync
from lightning.pytorch.profilers import Profiler

from worldlm.cli import main
from worldlm.cli.recipe_cli import RecipeCLI
from worldlm.cli.safe_mode import ALLOWED, refusal, refusal_of_class
from worldlm.cli.safe_values import check_safe_values
from worldlm.commands.inference.saved_run import data_module
from worldlm.data import Corpus, TrainedBPE
from worldlm.storage.paged_store import Paging
from worldlm.topology.errors import UserError

ADDRESSES = (
    "ftp://host/x",
    "file:///etc/x",
    "memory://x",
    "HTTP://host/x",
    "s3://bucket/x",
    "simplecache::ftp://host/x",
    "x/y::memory",
    "data:,x",
)
ELSEWHERE = ("/etc/x", "~/x", "~root/x", "../x", "x/../../y")
PLACES = {
    Callback: "trainer.callbacks",
    Logger: "trainer.logger",
    Profiler: "trainer.profiler",
    Accelerator: "trainer.accelerator",
    Precision: "trainer.plugins",
    ClusterEnvironment: "trainer.plugins",
    LayerSync: "trainer.plugins",
    Corpus: "data.corpora",
    TrainedBPE: "data.tokenizer",
    Paging: "trainer.paging",
}
"""The classes that a setting takes, and the setting."""
NEVER_OPENED = {("trainer.callbacks", "prompt"), *(("data.corpora", name) for name in ("where", "field", "by"))}


def modules(name: str) -> Iterator[Any]:
    """Yield a module and all modules within it; nothing for a class."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        return
    yield module
    for below in pkgutil.iter_modules(getattr(module, "__path__", ())):
        yield from modules(f"{name}.{below.name}")


def allowed_classes() -> list[tuple[str, type]]:
    """Return every class that a setting takes and `--safe` allows, with that setting."""
    packages = [name for name in ALLOWED if not name.startswith("torch.")] + ["lightning.pytorch.loggers"]
    values = {
        value for name in packages for module in modules(name) for value in vars(module).values() if is_class(value)
    }
    found = [(setting, value) for value in values for base, setting in PLACES.items() if issubclass(value, base)]
    return sorted((each for each in found if not refusal_of_class(each[1])), key=lambda each: each[1].__qualname__)


def is_class(value: object) -> bool:
    return isinstance(value, type) and not hasattr(value, "__origin__")


def settings_with(setting: str, kind: type, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return settings with one object."""
    group, name = setting.split(".")
    item = Namespace(class_path=f"{kind.__module__}.{kind.__qualname__}", init_args=Namespace(arguments))  # type: ignore[no-untyped-call]
    return {group: {name: {"topics": item} if name == "corpora" else [item] if name == "callbacks" else item}}


def arguments_of(kind: type) -> list[str]:
    return [name for name in inspect.signature(kind).parameters if name not in ("args", "self")]


CLASSES = allowed_classes()


def test_the_classes_are_found() -> None:
    names = {kind.__name__ for _, kind in CLASSES}
    assert {"ModelCheckpoint", "CSVLogger", "TensorBoardLogger", "SpikeDetection", "PyTorchProfiler"} <= names
    assert {"OnExceptionCheckpoint", "TextFiles", "HubDataset", "Paging", "Samples", "MixedPrecision"} <= names
    assert not {"XLAProfiler", "LambdaCallback", "ThroughputMonitor", "TorchCheckpointIO", "WandbLogger"} & names
    assert len(names) > 60


@pytest.mark.parametrize(("setting", "kind"), CLASSES, ids=lambda value: getattr(value, "__name__", None))
def test_no_argument_takes_an_address(setting: str, kind: type) -> None:
    for name in arguments_of(kind):
        for address in ADDRESSES:
            if (setting, name) in NEVER_OPENED:
                check_safe_values(settings_with(setting, kind, {name: address}))
                continue
            for value in (address, [address], {"a": address}, {address: "a"}):
                with pytest.raises(UserError, match="allows only paths on this machine"):
                    check_safe_values(settings_with(setting, kind, {name: value}))


@pytest.mark.parametrize(("setting", "kind"), CLASSES, ids=lambda value: getattr(value, "__name__", None))
def test_lightning_s_classes_write_below_the_current_folder(setting: str, kind: type) -> None:
    for name in arguments_of(kind) if kind.__module__.startswith("lightning.") else ():
        for path in (*ELSEWHERE, Path("/etc/x")):
            settings = settings_with(setting, kind, {name: path})
            with pytest.raises(UserError, match="only folders below the current one"):
                check_safe_values(settings)
            check_safe_values(settings, given={setting})
        check_safe_values(settings_with(setting, kind, {name: "logs/x..y"}))


@pytest.mark.parametrize(("setting", "kind"), CLASSES, ids=lambda value: getattr(value, "__name__", None))
def test_no_argument_takes_a_function(setting: str, kind: type) -> None:
    module = {"class_path": "torch.nn.ReLU"}
    for name, parameter in inspect.signature(kind).parameters.items():
        for value in (importlib.import_module, [importlib.import_module], module, [module]):
            with pytest.raises(UserError, match="allows no function to call"):
                check_safe_values(settings_with(setting, kind, {name: value}))
        if parameter.default is not parameter.empty:
            check_safe_values(settings_with(setting, kind, {name: parameter.default}))


@pytest.mark.parametrize(
    "setting",
    [
        "runs",
        "data.cache_dir",
        "trainer.default_root_dir",
        "trainer.paging.folder",
        "data.corpora.a.init_args.cache_dir",
    ],
)
def test_folders_are_below_the_current_one(setting: str) -> None:
    for path in ELSEWHERE:
        settings: Any = path
        for name in reversed(setting.split(".")):
            settings = {name: settings}
        with pytest.raises(UserError, match=f"^{setting}: --safe lets a recipe name only folders below"):
            check_safe_values(settings)
        check_safe_values(settings, given={setting})
        check_safe_values(settings, defaults={setting: path})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"trainer": {"model_registry": "a"}},
            "trainer.model_registry: --safe does not allow 'a': it uploads checkpoints",
        ),
        ({"trainer": {"profiler": "xla"}}, "trainer.profiler: --safe does not allow 'xla': it opens a port"),
        ({"federation": {"topology": "http://a/b"}}, "federation.topology: --safe allows only paths"),
        ({"name": "a::memory"}, "name: --safe allows only paths"),
        ({"data": {"tokenizer": "hf://a"}}, "data.tokenizer: --safe allows only paths"),
        (
            {"data": {"corpora": {"a": {"init_args": {"where": "a", "data_files": {"where": "s3://a"}}}}}},
            "data_files.where",
        ),
    ],
)
def test_other_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_safe_values(settings)


def test_texts_may_have_colons() -> None:
    check_safe_values({"model": {"split": {"keys": ["a::b", "x://"], "values": ("c://",)}}})


def test_a_recipe_opens_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reading: RecipeCLI
) -> None:
    def connect(*_: Any) -> NoReturn:
        raise AssertionError("connected")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(
        "runs: /etc/x\ntrainer:\n  logger:\n    class_path: CSVLogger\n    init_args: {save_dir: 'ftp://127.0.0.1:1/x'}\n"
        "  callbacks:\n    - class_path: lightning.pytorch.callbacks.ModelCheckpoint\n"
        "      init_args:\n        dirpath: ftp://127.0.0.1:1/x\n"
        "    - class_path: BackboneFinetuning\n      init_args: {lambda_func: torch.nn.functional.relu}\n"
    )
    assert main(["fit", "--safe", "--recipe", "quickstart", "--recipe", "r.yaml"]) == 2
    err = capsys.readouterr().err
    lines = [line.removeprefix("worldlm: ") for line in err.splitlines() if "safe" in line]
    local = "--safe allows only paths on this machine, without '://' and '::', but this is 'ftp://127.0.0.1:1/x'"
    assert lines == [
        "r.yaml:1: runs: --safe lets a recipe name only folders below the current one, but this is '/etc/x'; name it "
        "on the command line",
        f"r.yaml:9: trainer.callbacks.0.init_args.dirpath: {local}",
        "r.yaml:11: trainer.callbacks.1.init_args.lambda_func: --safe allows no function to call",
        f"r.yaml:5: trainer.logger.init_args.save_dir: {local}",
    ]
    assert not list(tmp_path.glob("runs*"))


def test_a_stranger_s_run_names_no_address() -> None:
    corpus = {
        "class_path": "worldlm.data.HubDataset",
        "init_args": {"path": "json", "data_files": {"train": "ftp://a/x"}},
    }
    settings = {"corpora": {"a": corpus}, "cache_dir": "/scratch/cache"}
    with pytest.raises(ValueError, match=r"^data\.corpora\.a\.init_args\.data_files\.train: --safe allows only paths"):
        data_module(settings, trusted=False)
    assert data_module(settings, trusted=True).cache_dir == "/scratch/cache"


def test_classes_that_open_ports_are_refused() -> None:
    assert refusal("lightning.pytorch.profilers.XLAProfiler").endswith("it opens a port")
