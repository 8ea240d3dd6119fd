"""A hand-made run of two rounds in a world of three levels, private in one half, and where it lies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NO_DEMAND = {"noise_multiplier": None, "clip_norm": None, "delta": None, "max_epsilon": None}
DEMAND = {"noise_multiplier": 0.75, "clip_norm": 0.5, "delta": 1e-5, "max_epsilon": 12.0}


def _node(name: str, *children: dict[str, Any], corpus: str | None = None, **demand: Any) -> dict[str, Any]:
    settings = [f"corpus {corpus}"] if corpus else []
    return {"name": name, "corpus": corpus, "told": settings, **NO_DEMAND, **demand, "children": list(children)}


def _score(perplexity: float) -> dict[str, float]:
    return {"perplexity": perplexity, "bits_per_byte": perplexity / 8}


def _round(number: int, names: str) -> dict[str, Any]:
    """Return round `number` (from 0): leaf i ends it at after_merge 20.25 + i - 4 number, after_fit a half lower."""
    nodes: dict[str, Any] = {"world": {"after_merge": _score(31.5)}, "north": {"after_merge": _score(32.5)}}
    for i, name in enumerate(names):
        merged = 20.25 + i - 4 * number
        nodes[name] = {
            "before": _score(256.75 + i),
            "after_merge": _score(merged),
            "after_fit": _score(merged - 0.5),
            "tokens": 1111 * (number + 1),
            "passes": 0.25 * (number + 1),
            "bytes_down": 3_100_000 * (number + 1),
            "bytes_up": 1_200_000 * (number + 1),
        }
    nodes[names[-1]]["epsilon"] = 4.375 * (number + 1)
    mixtures = {name: {other: 1 / len(names) for other in names} for name in names}
    return {"round": number, "nodes": nodes, "mixtures": {"north": mixtures}, "routes": {f"{names[0]} > north": 2}}


def content(names: str = "abc", num_rounds: int = 2, **more: Any) -> dict[str, Any]:
    """Return what results.json holds; leaves are named by letters, and the last one is private."""
    leaves = [_node(name, corpus=name, **(DEMAND if name == names[-1] else {})) for name in names]
    facts = {"text": ["t-1"], "blocks": 77, "batch_size": 4, "steps": 5, "fits": 1}
    return {
        "format": 1,
        "finished": True,
        "rounds_done": num_rounds,
        "rounds_wanted": 2,
        "seed": 1337,
        "topology": {"name": "shore", "root": _node("world", _node("north", *leaves))},
        "initial_weights": "digest 1",
        "data_nodes": {name: {**facts, "held_out_text": ["t-1"], "held_out_blocks": 3} for name in names},
        "versions": {"worldlm": "0", "python": "3"},
        "seconds": 61.5,
        "last_start": {"command": "worldlm fit --recipe tiny", "platform": "an abacus", "processors": 2},
        "rounds": [_round(number, names) for number in range(num_rounds)],
        **more,
    }


@pytest.fixture(name="content")
def _content() -> Callable[..., dict[str, Any]]:
    return content


@pytest.fixture
def lay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return what lays a run down in runs/NAME/version_0, in the folder one stands in: name, settings, then as content.

    What is given as `text` is its results.json instead.
    """
    monkeypatch.chdir(tmp_path)

    def lay(name: str = "tiny", config: str | None = "model: {lr: 0.5}\n", text: str = "", **more: Any) -> Path:
        folder = Path("runs", name, "version_0")
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(text or json.dumps(content(**more)), "utf-8")
        if config is not None:
            (folder / "config.yaml").write_text(config, "utf-8")
        return folder.parent

    return lay


@pytest.fixture
def empty_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are composed, and not written out, which takes most of a page's time."""
    monkeypatch.setattr("worldlm.commands.report.charts.inline_svg", lambda figure, salt, label: "<svg></svg>")
