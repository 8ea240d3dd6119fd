"""The text and shapes in plots."""

import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from worldlm.plots.boxes import Box
from worldlm.plots.budget import budget
from worldlm.plots.heatmaps import attention
from worldlm.plots.style import encoded, inline_svg, save
from worldlm.plots.world import draw_world
from worldlm.runs.results import RunRecord

WORLD = Box(
    name="world",
    children=(
        Box(name="north", lines=("8.50 after_merge",), children=(Box(name="a", edge="↓ 1 MB"), Box(name="b"))),
        Box(name="south", children=(Box(name="c"),)),
    ),
)


def texts(figure: Figure) -> set[str]:
    return {text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()}


def record(rounds: list[dict[str, Any]], **root: Any) -> RunRecord:
    content = {"topology": {"name": "t", "root": {"name": "w", "corpus": None, "children": [], **root}}}
    return RunRecord(method="m", folder=Path(), content={**content, "rounds": rounds})


def test_a_topology_shows_all_lines_of_its_boxes() -> None:
    figure = draw_world(WORLD, "a title")
    assert texts(figure) == {"a title", "world", "north", "south", "a", "b", "c", "8.50 after_merge", "↓ 1 MB"}


def test_arrows_go_from_origin_to_destination_with_a_count() -> None:
    figure = draw_world(WORLD, arrows={("a", "south"): 3, ("c", "north"): 1, ("a", "elsewhere"): 7})
    (axes,) = figure.axes
    arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    assert len(arrows) == 2
    assert {"3", "1"} <= texts(figure)
    assert "7" not in texts(figure)
    width, height = figure.get_size_inches()
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, pytest.approx(width)), (pytest.approx(height), 0))


def test_svg_contains_text_and_is_deterministic(tmp_path: Path) -> None:
    save(draw_world(WORLD), tmp_path / "one")
    assert (tmp_path / "one.svg").read_bytes() == encoded(draw_world(WORLD), "svg")
    assert ">8.50 after_merge</text>" in (tmp_path / "one.svg").read_text("utf-8")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_an_inline_svg_uses_the_colours_of_its_page_and_does_not_change_names() -> None:
    name = ' id="text_1" #000000 url(#a) <b>'
    box = Box(name="w", lines=(name,), children=(Box(name="a"),))
    first, second = (
        inline_svg(draw_world(box, arrows={("a", "w"): 1}), salt, 'a "world"') for salt in ("one", "other")
    )
    assert first.startswith('<svg role="img" aria-label="a &quot;world&quot;" fill="currentColor" viewBox="0 0 ')
    assert name.replace("<b>", "&lt;b&gt;") in first
    assert "stroke: currentColor" in first
    assert "stroke: var(--c0,#0072b2)" in first
    drawn = first.replace(name.replace("<b>", "&lt;b&gt;"), "")
    assert "#000000" not in drawn
    assert "http" not in drawn
    assert "font-family" not in drawn
    assert "#ffffff" not in drawn
    ids = [set(re.findall(r' id="([^"]*)"', each.replace(name, ""))) for each in (drawn, second)]
    assert not ids[0] & ids[1]
    assert set(re.findall(r"url\(#([^)]*)\)", drawn)) <= ids[0]


def test_attention_has_a_panel_for_each_federation() -> None:
    rounds = [{"round": i, "attention": {"w": {"a": 0.25, "b": 0.75}, "v": {"c": 1.0}}} for i in range(2)]
    panels = [axes for axes in attention([record(rounds)]).axes if axes.images]
    grids = [axes.images[0].get_array().tolist() for axes in panels[:2]]
    assert grids == [[[-0.25, -0.25], [0.25, 0.25]], [[0.0, 0.0]]]  # from an equal share
    assert [text.get_text() for text in panels[0].texts] == ["0.25", "0.25", "0.75", "0.75"]
    assert [axes.get_title(loc="left") for axes in panels[:2]] == ["w attends to", "v attends to"]


def test_attention_of_a_wide_topology_shows_some_federations() -> None:
    rounds = [{"round": 0, "attention": {f"f{i}": {f"c{i}.{j}": 0.1 for j in range(20)} for i in range(9)}}]
    figure = attention([record(rounds)])
    assert [len(axes.get_yticks()) for axes in figure.axes if axes.images] == [20, 20, 8]
    assert figure.get_suptitle() == "m: attention of 3 of 9 federations"


def test_budget_shows_spent_epsilon_and_limits() -> None:
    spent = {"a": {"epsilon": 1.0, "example_epsilon": None}, "b": {"epsilon": 1.0}, "c": {}}
    children = [{"name": name, "children": [], "max_epsilon": 8.0} for name in "abc"]
    figure = budget(record([{"round": 0, "nodes": spent}], children=children))
    lines = [(line.get_label(), list(line.get_ydata())) for line in figure.axes[0].lines]
    assert lines[0] == ("a, b, at most 8", [1.0])
    assert lines[1][1] == [8.0, 8.0]
    assert lines[2] == ("a (for each block of text): no bound", [])
    assert len(lines) == 3
