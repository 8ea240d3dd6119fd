"""A comparison that is killed, or whose disk fails, at any change of the disk goes on when it is started again."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from write_points import How, interrupt_everywhere

from worldlm.cli import main
from worldlm.commands.compare import compare
from worldlm.commands.compare.execute import execute
from worldlm.commands.compare.plan import PlannedRun, plan_runs
from worldlm.files.atomic_write import write_text
from worldlm.runs.lock import at_work

BASE = ["--recipe", "base.yaml", "--methods", "one.yaml", "--seeds", "1", "--name", "it"]


class Done:
    """A process that has ended."""

    def poll(self) -> int:
        return 0

    def terminate(self) -> None: ...

    def kill(self) -> None: ...

    def wait(self, timeout: float | None = None) -> int:
        return 0


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("worldlm.commands.compare.plots.draw_all", lambda records: {})  # they take seconds
    (tmp_path / "base.yaml").write_text("federation: {topology: shore.yaml}\n")
    (tmp_path / "shore.yaml").write_text("name: shore\n")
    (tmp_path / "one.yaml").write_text("# one\n")
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=pytest.mark.slow) for how in ("torn", "kill", "full", "read-only")]
)
def test_at_every_change(
    folder: Path, monkeypatch: pytest.MonkeyPatch, content: Callable[..., dict[str, Any]], how: How
) -> None:
    def start(run: PlannedRun, threads: int) -> Done:
        write_text(run.folder / "version_0" / "results.json", json.dumps(content(run.seed)))
        return Done()

    monkeypatch.setattr(sys.modules["worldlm.cli.main"], "_run", lambda words: compare(words, start))
    interrupt_everywhere(folder, lambda: main(BASE), how)


def test_a_run_that_still_works_is_waited_for(folder: Path, content: Callable[..., dict[str, Any]]) -> None:
    runs = plan_runs(["base.yaml"], ["one.yaml"], [1, 2], name="it", runs="runs", overrides=())
    started, lines, holds, may_end = list[str](), list[str](), threading.Event(), threading.Event()

    def earlier() -> None:
        with at_work(runs[0].folder / "version_0"):
            holds.set()
            may_end.wait(20)
            write_text(runs[0].folder / "version_0" / "results.json", json.dumps(content(1)))

    def start(run: PlannedRun, threads: int) -> Done:
        started.append(run.title)
        write_text(run.folder / "version_0" / "results.json", json.dumps(content(run.seed)))
        may_end.set()
        return Done()

    thread = threading.Thread(target=earlier)
    thread.start()
    holds.wait(20)
    assert execute(runs, start=start, report=lines.append, poll_seconds=0.01) == []
    thread.join()
    assert started == ["one, seed 2"]
    assert lines[0] == "[1/2] one, seed 1: still running since an earlier start; waiting for it"
    assert lines[-1] == "[1/2] one, seed 1: finished before"
