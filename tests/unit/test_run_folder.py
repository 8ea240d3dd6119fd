"""Where the checkpoints of a run lie."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from worldlm.runs.folder import check_name, find_checkpoint, find_run, find_saved, make_folder
from worldlm.runs.lock import at_work
from worldlm.topology.errors import UserError


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_the_last_version_with_a_checkpoint_is_the_run(tmp_path: Path) -> None:
    for number in (2, 10):
        touch(tmp_path / f"pile/version_{number}/checkpoints/last.ckpt")
    touch(tmp_path / "pile/version_11/config.yaml")
    assert find_run(tmp_path / "pile") == tmp_path / "pile/version_10"
    assert find_run(tmp_path / "pile/version_2") == tmp_path / "pile/version_2"
    with pytest.raises(UserError, match="no run with a checkpoint in .*version_11: name a run's folder"):
        find_run(tmp_path / "pile/version_11")
    with pytest.raises(UserError, match="no run at .*pil; did you mean 'pile'"):
        find_run(tmp_path / "pil")


def test_a_round_is_there_or_those_that_are_are_told(tmp_path: Path) -> None:
    last = touch(tmp_path / "checkpoints/last.ckpt")
    assert find_saved(tmp_path) == last
    with pytest.raises(UserError, match="round 3 was not kept; there is only the last one"):
        find_saved(tmp_path, 3)
    fifth, tenth = (touch(tmp_path / f"checkpoints/round_{number}.ckpt") for number in (5, 10))
    assert find_saved(tmp_path, 5) == fifth
    with pytest.raises(UserError, match="round 3 was not kept; there are 5, 10, and the last one"):
        find_saved(tmp_path, 3)
    last.unlink()
    assert find_saved(tmp_path) == tenth


def test_no_two_runs_get_the_same_folder(tmp_path: Path) -> None:
    runs = tmp_path / "runs" / "pile"
    with ThreadPoolExecutor() as threads:
        made = list(threads.map(make_folder, [runs] * 8))
    assert sorted(path.name for path in made) == [f"version_{number}" for number in range(8)]
    touch(runs / "version_20")
    (runs / "version_21.old").mkdir()
    (runs / "version_x").mkdir()
    assert make_folder(runs) == runs / "version_21"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    touch(tmp_path / "file")
    (tmp_path / "link").symlink_to("nowhere")
    for name, reason in (("file/pile", "Not a directory"), ("link/pile", "File exists")):
        with pytest.raises(UserError, match=f"the folder .*{name} for runs cannot be made: {reason}"):
            make_folder(tmp_path / name)


def test_names(tmp_path: Path) -> None:
    for name in ("pile", "a/b", "two words", "größe", "dot.", "a..b", "~"):
        assert check_name(name) == name
    for name in ("..", "a/../b", "/a", ".", "a\0", "a\nb"):
        with pytest.raises(UserError, match="name must be that of a folder below runs"):
            check_name(name)
    for name in (".a", "a/.b", "version_3", "a/version_0/b", "a/" + 128 * "ö"):
        with pytest.raises(UserError, match="no folder in it may begin with a dot, be version_N, or be longer than"):
            check_name(name)


def _last(runs: Path) -> str:
    found = find_checkpoint("last", runs)
    assert found is not None
    return found.parents[1].name


def test_the_last_checkpoint_is_that_of_the_run_that_was_started_last(tmp_path: Path) -> None:
    runs = tmp_path / "pile"
    for number, time in ((0, 3000), (1, 2000), (10, 1000)):
        os.utime(touch(runs / f"version_{number}/checkpoints/last.ckpt"), (time, time))
    assert _last(runs) == "version_10"  # by an older version, which recorded no order
    for number in (0, 1, 10, 1):
        with at_work(runs / f"version_{number}"):
            pass
    assert _last(runs) == "version_1"
    os.utime(runs / "version_0/checkpoints/last.ckpt", (9000, 9000))
    shutil.copytree(runs / "version_0", runs / "version_11")
    shutil.copytree(runs / "version_0", runs / "version_0.old")
    assert _last(runs) == "version_1"
    shutil.copytree(runs, tmp_path / "moved", copy_function=shutil.copyfile)  # all files with new times
    assert _last(tmp_path / "moved") == "version_1"
    with at_work(runs / "version_12"):
        assert _last(runs) == "version_1"  # the new run has no checkpoint yet
        touch(runs / "version_12/checkpoints/last.ckpt")
        assert _last(runs) == "version_12"
    (runs / ".starts").write_bytes(b"\xff")
    assert _last(runs) == "version_12"


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert find_checkpoint("last", tmp_path) is None
    with at_work(tmp_path / "version_0"):
        pass
    assert find_checkpoint("last", tmp_path) is None
    assert not (tmp_path / "version_0").exists()


def test_what_a_killed_run_had_half_written_goes_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / ".text.partial").mkdir()
    half = [tmp_path / ".results.json.1.partial", tmp_path / "checkpoints" / ".last.ckpt.7.partial"]
    others = [
        tmp_path / "results.json",
        tmp_path / "checkpoints" / "last.ckpt",
        tmp_path / ".text.partial" / "train.bin",
    ]
    for path in half + others:
        path.touch()
    with at_work(tmp_path):
        assert [path.exists() for path in half + others] == [False] * 2 + [True] * 3
