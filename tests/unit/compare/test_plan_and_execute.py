"""Runs are planned, carried out once, gone on with, and refused when their settings changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from worldlm.cli import main
from worldlm.commands.compare import compare
from worldlm.commands.compare.execute import execute, last_lines, num_cores, start_process
from worldlm.commands.compare.plan import PlannedRun, changes, plan_runs
from worldlm.topology.errors import UserError

BASE = ["--recipe", "base.yaml", "--methods", "one.yaml,two.yaml", "--seeds", "1,2", "--name", "it"]
FOLDERS = ["one-1", "two-1", "one-2", "two-2"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("worldlm.commands.compare.plots.draw_all", lambda records: {})  # they take seconds
    (tmp_path / "base.yaml").write_text("federation: {topology: shore.yaml}\n")
    (tmp_path / "shore.yaml").write_text("name: shore\n")
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(f"# {name}\n")
    return tmp_path


def planned(*overrides: str, methods: tuple[str, ...] = ("one.yaml", "two.yaml")) -> list[PlannedRun]:
    return plan_runs(["base.yaml"], methods, [1, 2], name="it", runs="runs", overrides=overrides)


def test_the_command_of_a_run() -> None:
    run = planned("--trainer.max_epochs", "3")[1]
    expected = (
        "fit --recipe base.yaml --recipe two.yaml --seed_everything 1 --name it/two-1 --runs runs --ckpt_path last"
    )
    assert " ".join(run.command) == f"{expected} --trainer.max_epochs 3"
    assert run.folder == Path("runs/it/two-1")
    assert [run.title for run in planned()] == ["one, seed 1", "two, seed 1", "one, seed 2", "two, seed 2"]


def test_a_method_of_two_recipes() -> None:
    run = planned(methods=("one.yaml+two.yaml",))[0]
    assert run.method == "one+two"
    assert run.command[1:7] == ("--recipe", "base.yaml", "--recipe", "one.yaml", "--recipe", "two.yaml")


def test_what_a_run_is_not_repeated_for(player: Any) -> None:
    lines: list[str] = []
    assert compare(BASE, player) == 0
    assert [title for title, _ in player.started] == ["one, seed 1", "two, seed 1", "one, seed 2", "two, seed 2"]
    assert {threads for _, threads in player.started} == {num_cores()}
    assert execute(planned(), start=player, report=lines.append) == []
    assert len(player.started) == 4
    assert lines == [f"[{i}/4] {run.title}: finished before" for i, run in enumerate(planned(), 1)]


def test_a_killed_run_goes_on_and_the_others_stay(player: Any) -> None:
    assert compare(BASE, player) == 0
    results = Path("runs/it/two-1/version_0/results.json")
    results.write_text(json.dumps({**json.loads(results.read_text()), "finished": False}))
    (results.parent / "checkpoints").mkdir()
    (results.parent / "checkpoints" / "last.ckpt").touch()
    lines: list[str] = []
    assert execute(planned(), start=player, report=lines.append, poll_seconds=0) == []
    assert [title for title, _ in player.started[4:]] == ["two, seed 1"]
    assert lines[1] == "[2/4] two, seed 1: resumes"


def test_a_failure_is_told_and_the_rest_goes_on(player: Any, capsys: pytest.CaptureFixture[str]) -> None:
    player.failing = {"two, seed 1"}
    assert compare(BASE, player) == 1
    captured = capsys.readouterr()
    assert "[2/4] two, seed 1: failed with status 2; see runs/it/two-1/stderr.txt" in captured.err
    assert [line for line in captured.err.splitlines() if line.startswith("    ")] == [
        f"    line {i}" for i in range(1, 6)
    ]
    assert "[4/4] two, seed 2: done" in captured.err
    assert "NO   same seeds: one 1, 2; two 2" in captured.out
    player.failing = set()
    assert compare(BASE, player) == 0
    assert len(player.started) == 5


def test_a_run_without_a_record_has_failed(player: Any) -> None:
    lines: list[str] = []
    player.failing = {"one, seed 1"}
    real = in_good_order(player)
    assert [run.title for run in execute(planned()[:1], start=real, report=lines.append)] == ["one, seed 1"]
    assert "ended without a finished results.json" in lines[1]


def in_good_order(player: Any) -> Any:
    def start(run: PlannedRun, threads: int) -> Any:
        process = player(run, threads)
        process.status = 0
        return process

    return start


@pytest.mark.parametrize(
    ("file", "text", "more", "message"),
    [
        ("one.yaml", "# another\n", [], "one.yaml"),
        ("shore.yaml", "name: sea\n", [], "shore.yaml"),
        (None, "", ["--trainer.max_epochs", "9"], "command line (then nothing, now --trainer.max_epochs 9)"),
    ],
)
def test_a_changed_run_is_refused(
    player: Any, capsys: pytest.CaptureFixture[str], file: str | None, text: str, more: list[str], message: str
) -> None:
    assert compare(BASE, player) == 0
    if file:
        Path(file).write_text(text)
    with pytest.raises(UserError) as error:
        compare([*BASE, *more], player)
    assert len(player.started) == 4
    wrong = [name for name in FOLDERS if file != "one.yaml" or name.startswith("one")]
    assert error.value.mistakes == (
        *(f"runs/it/{name} was started with another {message}" for name in wrong),
        "choose another --name, or remove these folders",
    )


def test_the_topology_of_the_command_line_counts() -> None:
    Path("other.yaml").write_text("name: other\n")
    for overrides in (("--federation.topology", "other.yaml"), ("--federation.topology=other.yaml",)):
        (name,) = planned(*overrides)[0].settings["topology"]
        assert name.endswith("other.yaml")


def test_a_damaged_settings_file_is_a_change() -> None:
    run = planned()[0]
    assert changes(run) == ""
    run.folder.mkdir(parents=True)
    run.settings_file.write_text("{")
    assert changes(run) == "settings.json"


def test_jobs_share_the_cores(player: Any) -> None:
    assert execute(planned(), jobs=2, start=player, report=lambda _: None, poll_seconds=0) == []
    assert player.most_at_once == 2
    assert {threads for _, threads in player.started} == {max(1, num_cores() // 2)}


def test_an_interrupt_stops_the_processes(player: Any) -> None:
    def report(line: str) -> None:
        if line.startswith("[2/4]"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(planned(), jobs=2, start=player, report=report)
    assert [process.stopped for process in player.processes] == ["terminate"]


def test_a_process_that_does_not_stop_is_killed(player: Any) -> None:
    def start(run: PlannedRun, threads: int) -> Any:
        process = player(run, threads)

        def wait(timeout: float | None = None) -> int:
            if "kill" not in process.stopped:
                raise KeyboardInterrupt
            return -9

        process.wait = wait
        process.poll = lambda: -9 if "kill" in process.stopped else None
        return process

    def report(line: str) -> None:
        if line.startswith("[2/4]"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(planned(), jobs=2, start=start, report=report)
    assert [process.stopped for process in player.processes] == ["terminatekill"]


def test_a_process_writes_to_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run = planned()[0]
    run.folder.mkdir(parents=True)
    object.__setattr__(run, "command", ("--version",))
    assert start_process(run, 3).wait(60) == 0
    assert (run.folder / "stdout.txt").read_text().startswith("worldlm ")
    assert (run.folder / "stderr.txt").read_text() == ""
    assert os.environ.get("OMP_NUM_THREADS") is None


def test_the_last_lines(tmp_path: Path) -> None:
    (tmp_path / "it").write_text("a\n\nb  \n\nc\n\n")
    assert last_lines(tmp_path / "it", 2) == ["b", "c"]
    assert last_lines(tmp_path / "none", 2) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "one.yaml"], "compare: needs --recipe and --methods, or --read RUN_FOLDER"),
        ([*BASE, "--sedes", "1"], "compare: no option --sedes; did you mean '--seeds'?"),
        ([*BASE, "--a.b", "1", "2"], "compare: unexpected word '2': settings are written --a.b value"),
        ([*BASE, "--jobs", "0"], "compare: argument --jobs: must be a whole number of at least 1, but is '0'"),
        (
            [*BASE, "--seeds", "1,x"],
            "compare: argument --seeds: must be whole numbers separated by commas, but is '1,x'",
        ),
        ([*BASE, "--seeds", "1,1"], "--seeds names 1 twice"),
        (["--recipe", "base.yaml", "--methods", "one.yaml,./one.yaml"], "--methods names one twice"),
        (["--recipe", "nowhere", "--methods", "one.yaml"], "no file 'nowhere', and no file of that name in recipes"),
        (
            ["--read", "runs", "--a.b", "1"],
            "compare: --read reads finished runs: it can be combined with --name and --runs only",
        ),
        (["--read", "runs"], "runs: no results.json in it, nor in the folder of a run below"),
    ],
)
def test_one_line_for_a_mistake(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["compare", *arguments]) == 2
    assert capsys.readouterr().err.splitlines()[0].startswith(f"worldlm: {message}")


def test_compare_needs_no_torch() -> None:
    modules = "worldlm.commands.compare, worldlm.commands.compare.plots"
    code = f"import sys; import {modules}; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
