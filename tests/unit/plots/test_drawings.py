"""The text and shapes in plots."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from worldlm.commands.report.stylesheet import STYLE
from worldlm.plots.boxes import Box
from worldlm.plots.budget import budget
from worldlm.plots.curves import curves
from worldlm.plots.heatmaps import WEIGHTS, attention
from worldlm.plots.style import encoded, inline_svg, save, shorten
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
    mixtures = {"w": {"a": {"b": 0.75, "a": 0.25}, "c": {"b": 0.5}}, "v": {"d": {"w": 1.0}}}
    rounds = [{"round": 0, "mixtures": {"w": {"a": {"b": 1.0}}}}, {"round": 1, "mixtures": mixtures}]
    panels = [axes for axes in attention([record(rounds)]).axes if axes.images]
    assert [axes.images[0].get_array().tolist() for axes in panels[:2]] == [[[0.25, 0.75], [0.0, 0.5]], [[1.0]]]
    assert [text.get_text() for text in panels[0].texts] == ["0.25", "0.75", "0.50"]
    assert [text.get_text() for text in panels[0].get_xticklabels()] == ["a", "b"]
    assert [text.get_text() for text in panels[0].get_yticklabels()] == ["a", "c"]
    assert [axes.get_title(loc="left") for axes in panels[:2]] == ["mixtures of w", "mixtures of v"]


def test_attention_is_a_mean_over_seeds() -> None:
    records = [record([{"round": 0, "mixtures": {"w": {"a": weights}}}]) for weights in ({"b": 1.0}, {"c": 1.0})]
    (axes,) = (axes for axes in attention(records).axes if axes.images)
    assert axes.images[0].get_array().tolist() == [[0.5, 0.5]]


def luminance(colour: Sequence[float]) -> float:
    """WCAG 2.2, relative luminance."""
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    return float(np.dot((0.2126, 0.7152, 0.0722), parts))


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_weights_are_readable_on_every_colour_of_a_light_and_a_dark_page(mode: int, share: float) -> None:
    ink, page = (to_rgb(re.findall(rf"--{name}: (#\w{{6}})", STYLE)[mode]) for name in ("ink", "page"))
    *colour, alpha = WEIGHTS(share)
    assert 0 <= alpha < 1  # the page shines through
    behind = luminance([alpha * of_cell + (1 - alpha) * of_page for of_cell, of_page in zip(colour, page, strict=True)])
    low, high = sorted((luminance(ink), behind))
    assert (high + 0.05) / (low + 0.05) >= 4.5


def test_every_node_has_a_line_of_its_own() -> None:
    names = [f"n{i}" for i in range(30)]
    rounds = [
        {"round": i, "nodes": {name: {"after_merge": {"perplexity": 9.0 - i}} for name in ["w", *names]}}
        for i in range(3)
    ]
    figure = curves(record(rounds, children=[{"name": name, "corpus": None, "children": []} for name in names]))
    (axes,) = figure.axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == len(axes.lines) == 24
    assert list(axes.lines[0].get_ydata()) == [9.0, 8.0, 7.0]
    assert [text.get_text() for text in figure.legends[0].texts] == ["w", *names[:23]]
    assert figure.get_suptitle() == "held-out perplexity by round, the first 24 of 31 nodes"


def test_long_names_lose_their_middle() -> None:
    assert shorten("a" * 28) == "a" * 28
    assert shorten("hospital-of-the-northern-city-1") == "hospital-of-th…rthern-city-1"


def test_attention_of_a_wide_topology_shows_some_federations() -> None:
    weights = {"x": 0.5, "y": 0.5}
    rounds = [{"round": 0, "mixtures": {f"f{i}": {f"c{i}.{j}": weights for j in range(20)} for i in range(9)}}]
    figure = attention([record(rounds)])
    assert [len(axes.get_yticks()) for axes in figure.axes if axes.images] == [20, 20, 8]
    assert figure.get_suptitle() == "m: attention of 3 of 9 federations in the last round: who receives from whom"


def test_budget_shows_spent_epsilon_and_limits() -> None:
    spent = {"a": {"epsilon": 1.0, "example_epsilon": None}, "b": {"epsilon": 1.0}, "c": {}}
    children = [{"name": name, "children": [], "max_epsilon": 8.0} for name in "abc"]
    figure = budget(record([{"round": 0, "nodes": spent}], children=children))
    lines = [(line.get_label(), list(line.get_ydata())) for line in figure.axes[0].lines]
    assert lines[0] == ("a, b, at most 8", [1.0])
    assert lines[1][1] == [8.0, 8.0]
    assert lines[2] == ("a (for each block of text): no bound", [])
    assert len(lines) == 3
