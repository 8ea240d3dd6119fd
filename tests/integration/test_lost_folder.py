"""A run whose folder is removed, moved or replaced ends within a round, and leaves what is there alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from worldlm.cli import main
from worldlm.models import LanguageModule
from worldlm.monitoring.record import Record
from worldlm.runs.lock import LOCK, FolderLost, at_work, check_held

RUN = Path("runs/tiny/version_0")


def remove(folder: Path = RUN) -> None:
    """Remove the folder. The thread that writes TensorBoard's file opens it again each time, so it may come back."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


def move() -> None:
    RUN.rename("elsewhere")


def replace() -> None:
    """Begin a second run in its place."""
    remove()
    RUN.mkdir()
    (RUN / LOCK).touch()


def remove_lock() -> None:
    (RUN / LOCK).unlink()


def replace_lock() -> None:
    (RUN / LOCK).rename(RUN / "lock")
    (RUN / LOCK).touch()


def remove_content() -> None:
    """Remove what `rm -r FOLDER/*` removes: all but hidden files."""
    for path in [*RUN.iterdir()]:
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def remove_parents() -> None:
    remove(Path("runs"))
    Path("runs").touch()


LOST = f"{RUN} was removed, moved or replaced while the run wrote there, so the run has ended; "
LOST_CONFIG = f"{RUN}/config.yaml was removed while the run wrote there, so the run has ended; "
AFTER = "if it was moved, move it back and resume"


def listing() -> list[str]:
    return sorted(str(path) for name in ("runs", "elsewhere") for path in [Path(name), *Path(name).rglob("*")])


HOW = [(how, "TensorBoardLogger") for how in (remove, move, replace, remove_lock, replace_lock, remove_content)]
HOW += [(remove_parents, "TensorBoardLogger"), (remove, "CSVLogger"), (move, "CSVLogger")]
QUICK = (HOW[0], HOW[5])


@pytest.mark.filterwarnings("ignore:Experiment logs directory")  # the lock is there
@pytest.mark.parametrize(
    ("how", "logger"), [pytest.param(*each, marks=() if each in QUICK else pytest.mark.slow) for each in HOW]
)
def test_the_run_ends_within_a_round(
    shore: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: Callable[[], None],
    logger: str,
) -> None:
    arguments = {"save_dir": "runs", "name": "tiny", "version": 0}
    recipe = yaml.safe_load(shore.read_text())
    recipe["trainer"]["logger"] = {"class_path": f"lightning.pytorch.loggers.{logger}", "init_args": arguments}
    shore.write_text(yaml.safe_dump(recipe))
    original, steps, after = LanguageModule.training_step, 0, list[str]()

    def training_step(*args: Any, **kwargs: Any) -> Any:
        nonlocal steps, after
        steps += 1
        if steps == 10:  # each of the three data nodes makes three steps a round
            how()
            after = listing()
        return original(*args, **kwargs)

    monkeypatch.setattr(LanguageModule, "training_step", training_step)
    assert main(["fit", "--recipe", "tiny.yaml", "--trainer.max_epochs", "9"]) == 2
    assert after != []
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("worldlm: ")]
    lines = [line for line in lines if "in the background" not in line]  # the thread that writes TensorBoard's file
    assert lines == [f"worldlm: {LOST_CONFIG if how is remove_content else LOST}{AFTER}"]
    assert 10 <= steps <= 18  # a logger that cannot write ends it earlier
    assert [path for path in listing() if path not in after and ".tfevents." not in path] == []


def test_nothing_is_written_when_it_is_stopped(shore: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Record.on_train_start

    def on_train_start(*args: Any) -> None:
        original(*args)
        remove()
        raise OSError("the disk is gone")

    monkeypatch.setattr(Record, "on_train_start", on_train_start)
    assert main(["fit", "--recipe", "tiny.yaml"]) == 2
    assert not RUN.exists()


def test_a_run_elsewhere_is_not_checked(tmp_path: Path) -> None:
    check_held(tmp_path / "nowhere")
    with at_work(tmp_path / "run"):
        check_held(tmp_path / "nowhere")
        check_held(tmp_path / "run")
        (tmp_path / "run" / "config.yaml").touch()
        check_held(tmp_path / "run")
        (tmp_path / "run" / "config.yaml").unlink()
        with pytest.raises(FolderLost, match=r"run/config\.yaml was removed"):
            check_held(tmp_path / "run")
    check_held(tmp_path / "run")


def test_a_folder_on_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(*_: Any, **__: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr("worldlm.runs.lock.FileLock.acquire", acquire)
    with pytest.raises(FolderLost, match="was removed, moved or replaced"), at_work(tmp_path / "run"):
        check_held(tmp_path / "run")
        (tmp_path / "run").rename(tmp_path / "moved")
        check_held(tmp_path / "run")
