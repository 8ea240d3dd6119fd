"""A run has a folder of its own, whatever logs it, and leaves the files of others alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from worldlm.callbacks import Averaging, LastCheckpoint, Record
from worldlm.cli import main
from worldlm.federation.parameters import PARTS
from worldlm.trainer import WorldTrainer

Make = Callable[..., Any]

RUN = Path("runs/tiny/version_0")
FIT = ("fit", "--recipe", "tiny.yaml")
CSV = {"class_path": "CSVLogger", "init_args": {"save_dir": "logs"}}
BOARD = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "board", "name": "", "version": ""}}


@pytest.mark.parametrize(
    ("logger", "files", "command"),
    [
        (False, [], ""),
        ("CSVLogger", [RUN / "lightning_logs/version_0/metrics.csv"], ""),
        (
            [CSV, BOARD],
            [Path("logs/lightning_logs/version_0/metrics.csv"), Path("board")],
            " (tensorboard --logdir board)",
        ),
    ],
)
def test_with_any_logger(
    shore: Path, capsys: pytest.CaptureFixture[str], logger: Any, files: Sequence[Path], command: str
) -> None:
    own = [shore.parent / name for name in ("config.yaml", "results.json", "checkpoints")]
    for path in own:
        path.write_text("mine")
    recipe = yaml.safe_load(shore.read_text())
    recipe["trainer"]["logger"] = logger
    shore.write_text(yaml.safe_dump(recipe))
    assert main([*FIT, "--trainer.max_epochs", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"done. results: {RUN}{command}"
    assert [path.read_text() for path in own] == ["mine"] * 3
    assert all((RUN / name).is_file() for name in ("config.yaml", "results.json", "checkpoints/last.ckpt"))
    assert all(path.exists() for path in files)
    if logger is not False:
        return
    assert main([*FIT, "--trainer.max_epochs", "2", "--ckpt_path", "last"]) == 0
    assert [path.name for path in RUN.parent.glob("version_*")] == ["version_0"]
    again = ["fit", "--recipe", str(RUN / "config.yaml"), "--name", "tiny", "--ckpt_path", "null"]
    assert main([*again, "--trainer.default_root_dir", "elsewhere"]) == 0
    assert main(again) == 0
    made = [path.as_posix() for path in Path().rglob("version_*")]
    assert sorted(made) == ["elsewhere/runs/tiny/version_0", "runs/tiny/version_0", "runs/tiny/version_1"]
    capsys.readouterr()
    assert main(["runs", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


@pytest.mark.filterwarnings("ignore:Checkpoint directory")  # of the run that resumes
def test_from_python(
    star: Make, make_module: Make, make_data: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results.json").write_text("mine")
    quiet: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}

    def fit(max_epochs: int = 1, ckpt_path: Any = None, **options: Any) -> str:
        callbacks: list[Any] = [Averaging(PARTS), Record(), LastCheckpoint(), ModelCheckpoint(filename="model")]
        trainer = WorldTrainer(topology=star("ab"), callbacks=callbacks, max_epochs=max_epochs, **quiet, **options)
        trainer.fit(make_module(), datamodule=make_data(), ckpt_path=ckpt_path)
        files = [trainer.folder / name for name in ("results.json", "checkpoints/last.ckpt", "checkpoints/model.ckpt")]
        assert all(path.is_file() for path in files)
        assert (trainer.log_dir, bool(list(trainer.folder.glob("events.*")))) == (str(trainer.folder), not options)
        return trainer.folder.absolute().relative_to(tmp_path).as_posix()

    assert fit() == "runs/star/version_0"
    assert fit(logger=False) == "runs/star/version_1"
    assert fit(logger=[CSVLogger("logs")]) == "runs/star/version_2"
    assert fit(logger=False, default_root_dir="elsewhere") == "elsewhere/runs/star/version_0"
    assert fit(2, "last", logger=False) == "runs/star/version_2"
    assert fit(2, "runs/star/version_0/checkpoints/last.ckpt") == "runs/star/version_0"
    assert (tmp_path / "results.json").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "elsewhere", "logs", "results.json"}
    options = {**quiet, "logger": False, "enable_checkpointing": False, "default_root_dir": "silent"}
    silent = WorldTrainer(topology=star("ab"), callbacks=[Averaging(PARTS)], max_epochs=1, **options)
    silent.fit(make_module(), datamodule=make_data())
    assert list(Path("silent").rglob("*")) == [], "nothing was written"
    assert main(["runs"]) == 0
