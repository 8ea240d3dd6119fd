"""Links in the place of checkpoints and folders: followed, or refused with one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from worldlm.cli import main
from worldlm.runs.folder import find_checkpoint, find_folder, find_run, find_saved
from worldlm.runs.lock import at_work
from worldlm.topology.errors import UserError

RUN = Path("runs/tiny/version_0")
FIT = ("fit", "--recipe", "tiny.yaml", "--trainer.max_epochs")
LAST = ("--ckpt_path", "last")
EXPORT = ("export", str(RUN), "--node", "sea", "--out", "out")
VALIDATE = ("validate", "--recipe", "tiny.yaml", *LAST)


def move_and_link(path: Path, target: Path) -> None:
    """Move a file or a folder, and leave a link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)
    path.symlink_to(target.absolute())


SLOW = [pytest.param(linked, marks=pytest.mark.slow) for linked in ("checkpoints", "", "../..", "results.json")]


@pytest.mark.parametrize("linked", ["checkpoints/last.ckpt", *SLOW])
def test_a_run_with_a_link_resumes(shore: Path, capsys: pytest.CaptureFixture[str], linked: str) -> None:
    assert main([*FIT, "1"]) == 0
    target = Path("disk") / (Path(linked).name.replace("..", "runs") or "version_0")
    move_and_link(Path(os.path.normpath(RUN / linked)), target)
    before = target.read_bytes() if target.is_file() else b""
    if linked != "results.json":
        assert main(EXPORT) == 0
        assert main(VALIDATE) == 0
    if linked == "checkpoints":
        (target / ".last.ckpt.1.partial").touch()
    assert main([*FIT, "2", *LAST]) == 0
    assert json.loads((RUN / "results.json").read_text())["rounds_done"] == 2
    assert [path.name for path in RUN.parent.glob("version_*")] == ["version_0"]
    if before:
        assert target.read_bytes() == before, "a link is replaced, its target stays"
    if linked == "checkpoints":
        assert [path.name for path in target.iterdir()] == ["last.ckpt"]
    capsys.readouterr()
    assert main(["runs", "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert (run["run"], run["rounds_done"]) == ("tiny/version_0", 2)


@pytest.mark.slow
def test_a_link_to_a_checkpoint_elsewhere(shore: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, "1"]) == 0
    best = Path("best.ckpt")
    best.symlink_to(RUN / "checkpoints/last.ckpt")
    capsys.readouterr()
    assert main([*FIT, "2", "--ckpt_path", "best.ckpt"]) == 0
    assert "the record starts with the next one" not in capsys.readouterr().err
    record = json.loads((RUN.with_name("version_1") / "results.json").read_text())
    assert record["rounds_done"] == len(record["rounds"]) == 2
    assert main([*FIT, "3", "--ckpt_path", str((RUN / "checkpoints/last.ckpt").absolute())]) == 0
    assert json.loads((RUN / "results.json").read_text())["rounds_done"] == 3


def test_links_to_nowhere(shore: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, "1"]) == 0
    for linked in ("checkpoints/last.ckpt", "checkpoints", "results.json", ""):
        path = RUN / linked
        path.rename("aside")
        path.symlink_to("nowhere")
        for command in (EXPORT,) if linked == "results.json" else ((*FIT, "2", *LAST), VALIDATE, EXPORT):
            capsys.readouterr()
            assert main(command) == 2
            line = f"worldlm: {path}: is a link to nowhere, which does not exist"
            assert capsys.readouterr().err.splitlines()[-1] == line
        path.unlink()
        Path("aside").rename(path)
    assert not Path("out").exists()


def test_folders_of_runs(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "version_0"
    (run / "checkpoints").mkdir(parents=True)
    last = run / "checkpoints" / "last.ckpt"
    last.touch()
    (tmp_path / "again").symlink_to(run)
    assert find_folder(tmp_path / "again" / "checkpoints" / "last.ckpt", tmp_path / "runs") == run
    assert find_folder(last, tmp_path / "runs") == run
    assert find_folder(None, tmp_path / "runs") is None
    assert find_folder(tmp_path / "elsewhere" / "last.ckpt", tmp_path / "runs") is None
    assert find_checkpoint("last", tmp_path / "runs") == last
    assert find_saved(find_run(tmp_path / "again")) == tmp_path / "again" / "checkpoints" / "last.ckpt"
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "runs" / "version_1").symlink_to("gone")
    for call in (
        lambda: find_checkpoint("last", tmp_path / "runs"),
        lambda: find_run(tmp_path / "runs" / "version_1"),
        lambda: find_run(tmp_path / "loop"),
        lambda: find_checkpoint(str(tmp_path / "loop"), tmp_path),
        lambda: at_work(tmp_path / "loop").__enter__(),
    ):
        with pytest.raises(UserError, match=r"is a link to (gone|loop), which does not exist"):
            call()
