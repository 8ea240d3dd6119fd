"""Hand-made records of a world with two leaves, and runs that are only played."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worldlm.commands.compare.plan import PlannedRun
from worldlm.runs.results import RunRecord

LEAF = {"text": ["hills-1"], "blocks": 10, "batch_size": 4, "steps": 5, "fits": 1}
HELD_OUT = {"held_out_text": ["hills-1"], "held_out_blocks": 3}


def content(
    seed: int = 1, after_merge: tuple[float, ...] = (8.0, 4.0), after_fit: tuple[float, ...] = (6.0, 2.0), **more: Any
) -> dict[str, Any]:
    """A finished run of two rounds: leaves a and b; in round 1 all perplexities are ten higher."""

    def score(perplexity: float) -> dict[str, float]:
        return {"perplexity": perplexity, "bits_per_byte": perplexity / 4}

    def nodes(number: int) -> dict[str, Any]:
        extra = 10.0 * (2 - number)
        leaves = {
            name: {
                "before": score(100.0),
                "after_merge": score(after_merge[i] + extra),
                "after_fit": score(after_fit[i] + extra),
                "tokens": 500 * number,
                "bytes_down": 1_000_000 * number,
                "bytes_up": 2_000_000 * number,
            }
            for i, name in enumerate("ab")
        }
        return {"world": {"after_merge": score(1.0)}, **leaves}

    leaves = [{"name": name, "corpus": name, "children": []} for name in "ab"]
    return {
        "format": 1,
        "finished": True,
        "rounds_done": 2,
        "rounds_wanted": 2,
        "seed": seed,
        "topology": {"name": "star", "root": {"name": "world", "corpus": None, "children": leaves}},
        "initial_weights": f"digest {seed}",
        "data_nodes": {name: {**LEAF, **HELD_OUT} for name in "ab"},
        "versions": {"worldlm": "0", "python": "3"},
        "seconds": 60.0,
        "rounds": [
            {"round": n - 1, "nodes": nodes(n), "mixtures": {"world": {"a": {"b": 0.75, "a": 0.25}}}, "routes": {}}
            for n in (1, 2)
        ],
        **more,
    }


@pytest.fixture(name="content")
def _content() -> Callable[..., dict[str, Any]]:
    return content


@pytest.fixture
def record() -> Callable[..., RunRecord]:
    """Return a builder of records: method, then as `content`."""
    return lambda method, *args, **more: RunRecord(
        method=method, folder=Path(f"runs/x/{method}"), content=content(*args, **more)
    )


class Played:
    """A process that ends after so many looks, having done its part."""

    def __init__(self, looks: int, status: int, act: Callable[[], None]) -> None:
        self.looks, self.status, self.act = looks, status, act
        self.stopped = ""

    def poll(self) -> int | None:
        if self.stopped:
            return -15
        if self.looks:
            self.looks -= 1
            return None
        self.act()
        self.act = lambda: None
        return self.status

    def terminate(self) -> None:
        self.stopped += "terminate"

    def kill(self) -> None:
        self.stopped += "kill"

    def wait(self, timeout: float | None = None) -> int:
        assert self.stopped
        return -15


class Player:
    """Starts played runs; those whose title is in `failing` write no results and say why."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int]] = []
        self.processes: list[Played] = []
        self.failing: set[str] = set()
        self.most_at_once = 0

    def __call__(self, run: PlannedRun, threads: int) -> Played:
        def act() -> None:
            if run.title in self.failing:
                (run.folder / "stderr.txt").write_text("much before\n\n" + "".join(f"line {i}\n" for i in range(6)))
                return
            folder = run.folder / "version_0"
            folder.mkdir(exist_ok=True)
            (folder / "results.json").write_text(json.dumps(content(run.seed)))

        self.started.append((run.title, threads))
        self.processes.append(Played(2, 2 if run.title in self.failing else 0, act))
        self.most_at_once = max(self.most_at_once, sum(process.act.__name__ == "act" for process in self.processes))
        return self.processes[-1]


@pytest.fixture
def player() -> Player:
    return Player()
