"""The content of the boxes in plots."""

from pathlib import Path
from typing import Any

import pytest

from worldlm.plots.boxes import Box, of_perplexity, of_topology, of_traffic, shortened
from worldlm.runs.results import RunRecord
from worldlm.topology import parse_topology


def record(**nodes: dict[str, Any]) -> RunRecord:
    leaves = [{"name": name, "corpus": name, "children": []} for name in "ab"]
    content = {
        "topology": {"name": "star", "root": {"name": "world", "corpus": None, "children": leaves}},
        "rounds": [{"round": 0, "nodes": {}}, {"round": 1, "nodes": nodes}],
    }
    return RunRecord(method="m", folder=Path(), content=content)


def score(perplexity: float | None) -> dict[str, Any]:
    return {"perplexity": perplexity}


def wide(*widths: int, name: str = "n") -> Box:
    below = tuple(wide(*widths[1:], name=f"{name}.{i}") for i in range(widths[0])) if widths else ()
    return Box(name=name, children=below)


def test_the_boxes_of_a_topology_show_the_same_as_its_text_tree() -> None:
    text = "name: t\nsettings: {num_local_steps: 5}\nroot: {name: w, children: [{name: a, corpus: it, weight: 2}]}\n"
    box = of_topology(parse_topology(text, "t.yaml"))
    assert box == Box(name="w", children=(Box(name="a", lines=("corpus it", "5 steps", "weight 2")),))


def test_a_lower_perplexity_has_a_stronger_colour() -> None:
    root = of_perplexity(record(world={"after_merge": score(100.0)}, a={"after_fit": score(1.0)}, b={}))
    a, b = root.children
    assert (root.lines, a.lines, b.lines) == (("100.00 after_merge",), ("1.00 after_fit",), ())
    assert (root.shade, a.shade, b.shade) == pytest.approx((0.2, 1.0, 0.0))


def test_very_large_perplexities_are_abbreviated() -> None:
    root = of_perplexity(record(world={"after_merge": score(1e12)}, a={"after_merge": score(None)}))
    assert root.lines == ("1.0e+12 after_merge",)
    assert root.children[0].lines == ("inf after_merge",)


def test_nodes_far_worse_than_at_the_start_have_no_colour_and_no_part_in_the_scale() -> None:
    start = {"before": score(100.0)}
    lost = {**start, "after_merge": score(1e304), "after_fit": score(12.0)}
    good = {**start, "after_merge": score(10.0)}
    root = of_perplexity(record(world={**start, "after_merge": score(100.0)}, a=lost, b=good))
    a, b = root.children
    assert (root.shade, a.shade, b.shade) == pytest.approx((0.2, 0.0, 1.0))


def test_traffic_is_shown_on_the_edges() -> None:
    root = of_traffic(record(a={"bytes_down": 1_000_000, "bytes_up": 2_000_000}, b={"bytes_down": 500_000}))
    a, b = root.children
    assert (root.edge, a.edge, b.edge) == ("", "↓ 1.0 MB  ↑ 2.0 MB", "↓ 0.5 MB  ↑ 0.0 MB")
    assert (a.edge_width, b.edge_width) == (7.0, 2.0)
    assert of_traffic(record(), number=0).children[0].edge == ""


def test_a_wide_topology_shows_as_many_children_as_fit() -> None:
    world = wide(3, 100)
    shown = shortened(world, max_rows=18)
    assert [len(box.children) for box in shown.children] == [6, 6, 6]  # five, and a box for the others
    assert shown.num_leaves == 18
    assert shown.children[0].children[-1] == Box(name="", lines=("and 95 more",))
    assert shortened(world, max_rows=300) is world


def test_with_more_federations_than_rows_each_shows_one_child() -> None:
    shown = shortened(wide(2, 2, 2), max_rows=1)
    assert [box.name for box in shown.walk() if box.name] == ["n", "n.0", "n.0.0", "n.0.0.0"]
