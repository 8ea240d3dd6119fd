"""`worldlm runs`, from files alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from worldlm.cli import main
from worldlm.commands.list_runs import find_runs, read_run
from worldlm.runs.lock import LOCK, at_work, is_at_work
from worldlm.runs.results import RESULTS
from worldlm.topology.errors import UserError


def score(value: float | None) -> dict[str, float | None]:
    return {"perplexity": value, "bits_per_byte": None}


def record(*rounds: tuple[float | None, float], **more: Any) -> dict[str, Any]:
    """A run of leaves a and b; a pair is after_merge and after_fit of a, of which b's are the double."""
    leaves = [{"name": name, "corpus": name, "children": []} for name in "ab"]

    def nodes(merge: float | None, fit: float) -> dict[str, Any]:
        return {
            "world": {"after_merge": score(1.0)},
            "a": {"after_merge": score(merge), "after_fit": score(fit)},
            "b": {"after_merge": score(None if merge is None else 2 * merge), "after_fit": score(2 * fit)},
        }

    return {
        "format": 1,
        "finished": True,
        "rounds_done": len(rounds),
        "rounds_wanted": 3,
        "seed": 7,
        "topology": {"name": "star", "root": {"name": "world", "corpus": None, "children": leaves}},
        "rounds": [{"round": number, "nodes": nodes(*figures)} for number, figures in enumerate(rounds)],
        **more,
    }


def put(folder: Path, content: Any, at: float) -> Path:
    folder.mkdir(parents=True)
    (folder / RESULTS).write_text(content if isinstance(content, str) else json.dumps(content))
    for path in (folder / RESULTS, folder):
        os.utime(path, (at, at))
    return folder


def test_runs_are_listed_newest_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "compare-x" / "fedavg-1" / "version_0", record((8.0, 6.0), (4.0, 8.0), (6.0, 7.0)), 1000)
    private = record((10.0, 9.0), finished=False)
    private["rounds"][0]["nodes"]["a"]["epsilon"] = 2.5
    put(tmp_path / "mine" / "version_3", private, 3000)
    (tmp_path / "mine" / "version_3" / "pages" / "version_9").mkdir(parents=True)  # below a run is none
    os.utime(tmp_path / "mine" / "version_3" / "pages", (3000, 3000))
    os.utime(tmp_path / "mine" / "version_3", (3000, 3000))
    (tmp_path / "mine" / "version_2").mkdir()
    os.utime(tmp_path / "mine" / "version_2", (2000, 2000))
    assert main(["runs", str(tmp_path), "--json"]) == 0
    first, second, third = json.loads(capsys.readouterr().out)
    assert (first["run"], first["state"], first["epsilon"]) == ("mine/version_3", "stopped", 2.5)
    assert (first["rounds_done"], first["rounds_wanted"], first["seed"], first["topology"]) == (1, 3, 7, "star")
    assert {name: second[name] for name in second if name != "last_write"} == {
        "run": "mine/version_2",
        "state": "stopped",
        "rounds_done": 0,
    }
    assert (third["run"], third["state"]) == ("compare-x/fedavg-1/version_0", "finished")
    assert (third["best_after_merge"], third["best_after_fit"]) == (6.0, 9.0)  # of 4 and 8, of 6 and 12
    assert "epsilon" not in third
    assert main(["runs", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]
    assert [line[:8] for line in lines] == [
        ["mine/version_3", "star", "7", "stopped", "1/3", "15.00", "13.50", "2.50"],
        ["mine/version_2", "", "", "stopped", "0", "", "", ""],
        ["compare-x/fedavg-1/version_0", "star", "7", "finished", "3/3", "6.00", "9.00", ""],
    ]
    assert output.splitlines()[-1].endswith(f": {tmp_path}")
    assert "protects little or nothing" not in output
    private["rounds"][0]["nodes"]["a"]["epsilon"] = 1507390.0
    (tmp_path / "mine" / "version_3" / RESULTS).write_text(json.dumps(private))
    assert main(["runs", str(tmp_path)]) == 0
    assert "epsilon above 10 protects little or nothing: mine/version_3\n" in capsys.readouterr().out


def test_one_model_in_one_place_has_no_after_fit_at_the_nodes(tmp_path: Path) -> None:
    content = record((8.0, 6.0))
    for name in "ab":
        del content["rounds"][0]["nodes"][name]["after_fit"]
    content["topology"]["root"]["corpus"] = "all"
    content["rounds"][0]["nodes"]["world"] = {"after_fit": score(3.0)}
    found = read_run(put(tmp_path / "version_0", content, 1000), tmp_path)
    assert found.best == {"after_merge": 12.0, "after_fit": None}


def test_a_mean_is_over_the_nodes_that_have_a_score_and_bad_nodes_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = record((8.0, 6.0))
    del content["rounds"][0]["nodes"]["b"]["after_fit"]
    content["rounds"][0]["nodes"]["b"]["before"] = score(7.5)
    put(tmp_path / "version_0", content, 1000)
    assert main(["runs", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "│ 6.00 (1 of 2 nodes) │" in output
    assert "version_0: far worse than at the start (perplexity above 2 times that before, or not finite): b" in output
    assert main(["runs", str(tmp_path), "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert (run["best_after_fit"], run["nodes_after_fit"], run["nodes_after_merge"]) == (6.0, 1, 2)
    assert run["far_worse"] == ["b"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "nonsense",
        "{}",
        '{"format": 1}',
        '{"format": 2}',
        "[" * 100_000,
        json.dumps(record((1.0, 1.0), rounds=[{"round": 0, "nodes": {"a": 3}}])),
        json.dumps(record((1.0, 1.0), topology=None)),
        json.dumps(record((1.0, 1.0), seed="one")),
        json.dumps(record((1.0, 1.0), rounds_done=None)),
    ],
)
def test_what_is_no_record_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    put(tmp_path / "theirs[red]" / "version_0", content, 1000)
    put(tmp_path / "mine" / "version_0", record((8.0, 6.0)), 2000)
    assert main(["runs", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "finished" in output
    assert "theirs[red]/version_0" in output
    (line,) = [line for line in output.splitlines() if line.startswith(f"{tmp_path}/theirs[red]/version_0/{RESULTS}: ")]
    assert main(["runs", str(tmp_path), "--json"]) == 0
    (_, broken) = json.loads(capsys.readouterr().out)
    assert (broken["state"], broken["problem"]) == ("unreadable", line)


def test_a_folder_in_the_place_of_results_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "version_0" / RESULTS).mkdir(parents=True)
    assert [read_run(run, tmp_path).state for run in find_runs(tmp_path)] == ["unreadable"]


def test_figures_without_end_are_null_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = record((None, 2e14))
    content["rounds"][0]["nodes"]["a"]["epsilon"] = None
    put(tmp_path / "version_0", content, 1000)
    assert main(["runs", str(tmp_path), "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert (run["run"], run["best_after_merge"], run["epsilon"]) == ("version_0", None, None)
    assert main(["runs", str(tmp_path / "version_0")]) == 0
    assert " inf " in capsys.readouterr().out


def test_a_run_at_work_is_known_by_its_lock(tmp_path: Path) -> None:
    run = put(tmp_path / "version_0", record((8.0, 6.0), (8.0, 6.0), (8.0, 6.0)), 1000)
    code = "import sys; from filelock import FileLock\n"
    code += "with FileLock(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(run / LOCK)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    assert read_run(run, tmp_path).state == "running"
    with pytest.raises(UserError, match="another worldlm fit is writing to"), at_work(run):
        pass
    other.kill()
    other.communicate()
    assert read_run(run, tmp_path).state == "finished"


def test_a_folder_in_which_nothing_came_of_a_run_goes(tmp_path: Path) -> None:
    with at_work(tmp_path / "a" / "version_0"):
        assert is_at_work(tmp_path / "a" / "version_0")
    assert not (tmp_path / "a" / "version_0").exists()
    with at_work(tmp_path / "version_1"):
        (tmp_path / "version_1" / "config.yaml").touch()
    assert (tmp_path / "version_1" / LOCK).exists()
    assert not is_at_work(tmp_path / "version_1")
    (tmp_path / "empty").mkdir()
    with at_work(tmp_path / "empty"):  # was there before
        pass
    assert (tmp_path / "empty").is_dir()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(UserError, match="cannot be made: Not a directory"), at_work(tmp_path / "runs" / "version_0"):
        pass


def test_looking_changes_nothing(tmp_path: Path) -> None:
    run = put(tmp_path / "version_0", record((8.0, 6.0)), 1000)
    (run / LOCK).touch()
    os.utime(run, (1000, 1000))
    assert [read_run(run, tmp_path).last_write for _ in range(2)] == [1000, 1000]
    with FileLock(run / LOCK):
        assert is_at_work(run)


def test_the_recorded_time_counts_and_not_that_of_the_files(tmp_path: Path) -> None:
    started = {"last_start": {"written": "1970-01-01T00:10:00+00:00"}}
    run = put(tmp_path / "version_0", record((8.0, 6.0), **started), 1000)
    assert read_run(run, tmp_path).last_write == 600
    (run / LOCK).touch()
    os.utime(run, (1000, 1000))
    with FileLock(run / LOCK):
        assert read_run(run, tmp_path).last_write == 1000  # while it runs
    forged = put(tmp_path / "version_1", record((8.0, 6.0), last_start={"written": "yesterday"}), 1000)
    assert read_run(forged, tmp_path).state == "unreadable"


def test_folders_without_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 0
    assert capsys.readouterr().out == "no runs in runs yet; worldlm fit --recipe quickstart makes one\n"
    assert main(["runs", "--json"]) == 0
    assert capsys.readouterr().out == "[]\n"
    assert main(["runs", "there"]) == 2
    assert capsys.readouterr().err == "worldlm: runs: no folder there\n"
    assert main(["runs", "--jsn"]) == 2
    assert "worldlm: runs: unrecognized arguments: --jsn" in capsys.readouterr().err


def test_listing_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys; from worldlm.cli import main; main(['runs']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True).returncode == 0
