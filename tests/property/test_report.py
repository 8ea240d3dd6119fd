"""A results.json from anybody: a line that says what is wrong, or a page; never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldlm.commands.report.load_runs import load_runs
from worldlm.commands.report.page import page
from worldlm.topology.errors import UserError

LEAF = {"name": "a", "corpus": "a", "children": [], "told": ["corpus a"], "noise_multiplier": 1.0, "max_epsilon": 2.0}
SCORE = {"perplexity": 4.5, "bits_per_byte": None}
CONTENT: dict[str, Any] = {
    "format": 1,
    "finished": True,
    "rounds_done": 1,
    "rounds_wanted": 1,
    "seed": 1,
    "topology": {"name": "t", "root": {"name": "w", "corpus": None, "children": [LEAF]}},
    "initial_weights": None,
    "data_nodes": {"a": {"text": ["a"], "blocks": 1, "batch_size": 1, "steps": 1, "fits": 1}},
    "versions": {"worldlm": "0"},
    "seconds": 1.0,
    "last_start": {"command": "worldlm fit", "threads": 1},
    "rounds": [
        {
            "round": 0,
            "nodes": {"a": {"after_merge": SCORE, "after_fit": SCORE, "tokens": 9, "bytes_up": 5, "epsilon": 0.5}},
            "mixtures": {"w": {"a": {"b": 1.0}}},
            "routes": {"a > w": 1},
        }
    ],
}
ODD = st.sampled_from(
    [None, True, -1, 0, 10**30, -1e300, 1e304, 1e-300, "", "x", "<b>", "$x_", "\ud800", [], [None], {}, {"a": None}]
)


@st.composite
def spoilt(draw: st.DrawFn) -> Any:
    """The record with one to three values replaced, taken away, or doubled."""
    whole = {"": json.loads(json.dumps(CONTENT))}
    for _ in range(draw(st.integers(1, 3))):
        place: Any = whole
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            deeper = isinstance(place[key], (dict, list)) and bool(place[key])
            if deeper and draw(st.integers(0, 9)):
                place = place[key]
                continue
            how = draw(st.sampled_from(["other", "gone", "twice"]))
            if how == "other" or place is whole:
                place[key] = json.loads(json.dumps(draw(ODD)))
            elif how == "gone":
                del place[key]
            elif isinstance(place, list):
                place.append(place[key])
            else:
                place[draw(st.sampled_from(["b", "dropped", "a > b", "<b>"]))] = place[key]
            break
    return whole[""]


@pytest.mark.slow
@settings(max_examples=150)
@given(spoilt())
def test_whatever_a_record_holds(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    folder: Path = tmp_path_factory.mktemp("run")
    (folder / "results.json").write_text(json.dumps(content), "utf-8")
    try:
        runs = load_runs([folder])
    except UserError:
        return
    assert page(runs).endswith("</html>\n")
