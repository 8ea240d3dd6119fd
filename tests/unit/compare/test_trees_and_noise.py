"""What a comparison shows of several topologies, of residuals, of noise, and of nodes stopped in time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worldlm.commands.compare.plots import draw_all
from worldlm.commands.compare.records import read_runs
from worldlm.commands.compare.table import Spread, rows
from worldlm.runs.results import RunRecord
from worldlm.topology.errors import UserError

Make = Callable[..., Any]


def on(record: RunRecord, topology: str) -> RunRecord:
    record.content["topology"]["name"] = topology
    return record


def noisy(record: RunRecord, noise_multiplier: float) -> RunRecord:
    leaves = record.content["topology"]["root"]["children"]
    leaves[0]["noise_multiplier"], leaves[1]["noise_multiplier"] = noise_multiplier, None
    return record


def test_stopped_in_time_each_node_is_as_it_was_in_its_best_round(record: Make) -> None:
    run = record("m")  # after_fit of a 16 and 6, of b 12 and 2
    run.rounds[1]["nodes"]["a"]["after_fit"]["perplexity"] = 40.0
    (row,) = rows([run])
    assert row.figures["best after_fit"] == Spread((16.0 + 2.0) / 2)
    assert row.figures["after_fit"] == Spread((40.0 + 2.0) / 2)


def test_a_method_on_two_topologies_is_two(tmp_path: Path, content: Make) -> None:
    for name, topology in (("plain", "tree"), ("swapped", "other-tree")):
        for method in ("x", "y") if name == "plain" else ("x",):
            folder = tmp_path / name / f"{method}-1"
            (folder / "version_0").mkdir(parents=True)
            (folder / "settings.json").write_text("{}")
            record = content()
            record["topology"]["name"] = topology
            (folder / "version_0" / "results.json").write_text(json.dumps(record))
    records = read_runs([tmp_path / "plain", tmp_path / "swapped"])
    assert [record.method for record in records] == ["x on tree", "y", "x on other-tree"]
    with pytest.raises(UserError, match="both are x, seed 1"):
        read_runs([tmp_path / "plain", tmp_path / "plain"])


def test_topologies_are_drawn_with_their_root(record: Make) -> None:
    records = [on(record("x on tree"), "tree"), on(record("x on star"), "star")]
    figure = draw_all(records)["perplexity_by_topology"]
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["world", "a", "b"]
    assert list(figure.axes[0].lines[0].get_ydata()) == [1.0, 1.0]
    assert "perplexity_by_topology" not in draw_all([record("x"), record("y")])


def test_routes_of_residuals_are_drawn(record: Make) -> None:
    first, two = record("x", 1), record("x", 2)
    assert "residuals_x" not in draw_all([first])
    first.rounds[0]["routes"], first.rounds[1]["routes"] = {"b > a": 1}, {"b > a": 2, "a > b": 1}
    two.rounds[1]["routes"] = {"b > dropped": 4}
    assert first.routes == {("b", "a"): 3, ("a", "b"): 1}
    axes, _ = draw_all([first, two])["residuals_x"].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "dropped"]
    assert axes.images[0].get_array().tolist() == [[0.0, 0.5, 0.0], [1.5, 0.0, 2.0]]


def test_perplexity_by_noise(record: Make) -> None:
    quiet, clipped = record("x"), noisy(record("x+quiet", 1, (10.0, 6.0)), 0.0)
    loud = [noisy(record("x+loud", seed, (20.0 * seed, 4.0)), 0.5) for seed in (1, 2)]
    assert (quiet.noise_multiplier, clipped.noise_multiplier, loud[0].noise_multiplier) == (None, 0.0, 0.5)
    assert "perplexity_by_noise" not in draw_all([quiet])
    (axes,) = draw_all([quiet, clipped, *loud, record("y")])["perplexity_by_noise"].axes
    of_x, level, of_y = axes.lines
    assert (list(of_x.get_xdata()), list(of_x.get_ydata())) == ([0.0, 0.5], [8.0, 17.0])
    assert list(level.get_ydata()) == [6.0, 6.0]
    assert level.get_linestyle() == of_y.get_linestyle() == "--"
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == ["x", "y"]


def test_a_diverged_run_is_no_point(record: Make) -> None:
    quiet, lost = noisy(record("x+quiet"), 0.0), noisy(record("x+loud"), 0.5)
    lost.rounds[-1]["nodes"]["a"]["after_merge"]["perplexity"] = None
    (axes,) = draw_all([quiet, lost])["perplexity_by_noise"].axes
    assert list(axes.lines[0].get_xdata()) == [0.0]


def test_a_run_that_lost_all_leaves_the_picture_and_does_not_spoil_it(record: Make) -> None:
    quiet, lost = noisy(record("x+quiet"), 0.0), noisy(record("x+loud", 1, (10.0, 1e300)), 0.5)
    (axes,) = draw_all([quiet, lost])["perplexity_by_noise"].axes
    assert len(axes.lines[0].get_xdata()) == 2
    low, high = axes.get_ylim()
    assert 0 < low < min(axes.lines[0].get_ydata()) < high == 1e6
