"""The content of the boxes in a plot of a topology."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from worldlm.runs.results import MOMENTS, RunRecord, or_infinity
from worldlm.runs.scores import is_far_worse, score_text
from worldlm.topology import Node, Topology
from worldlm.topology.draw import facts

MAX_ROWS = 48
"""Largest number of leaves in a plot; of a wider topology, only the first children of every federation are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A node in a plot, with its descendants."""

    name: str
    """Its name; empty for a box that stands for nodes that are not drawn."""
    lines: tuple[str, ...] = ()
    """The lines below its name."""
    shade: float = 0.0
    """Intensity of its colour, in [0, 1]."""
    edge: str = ""
    """The label of the edge to its parent."""
    edge_width: float = 1.0
    """Width of that edge, in points."""
    children: tuple[Box, ...] = ()
    """The participants of its federation."""

    def walk(self) -> Iterator[Box]:
        """Yield this box and its descendants, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()

    @property
    def num_leaves(self) -> int:
        """Number of rows that it needs."""
        return sum(child.num_leaves for child in self.children) or 1


def of_topology(topology: Topology) -> Box:
    """Return boxes with the settings of every node, as in `worldlm.topology.draw_tree`."""

    def box(node: Node, above: Node | None) -> Box:
        children = tuple(box(child, node) for child in node.children)
        return Box(name=node.name, lines=tuple(facts(node, above)), children=children)

    return box(topology.root, None)


def of_perplexity(record: RunRecord, number: int | None = None) -> Box:
    """Return boxes with every node's perplexities after a round; a lower perplexity has a stronger colour.

    Nodes that are far worse than at the start have no colour.

    Args:
        record: The run.
        number: The round, from 0; by default the last one.
    """
    nodes = record.round(number)["nodes"]
    scores = {name: _scores(figures) for name, figures in nodes.items()}
    before = {name: figures.get("before", {}).get("perplexity") for name, figures in nodes.items()}
    logs = {
        name: math.log(min(perplexities.values()))
        for name, perplexities in scores.items()
        if perplexities and not is_far_worse(before[name], *perplexities.values())
    }
    low, high = min(logs.values(), default=0.0), max(logs.values(), default=0.0)

    def content(name: str) -> dict[str, Any]:
        perplexities = scores.get(name, {})
        has_scale = name in logs and high > low
        return {
            "lines": tuple(f"{score_text(value)} {moment}" for moment, value in perplexities.items()),
            "shade": 1.0 - 0.8 * (logs[name] - low) / (high - low) if has_scale else 0.5 * (name in logs),
        }

    return _recorded(record, content)


def of_traffic(record: RunRecord, number: int | None = None) -> Box:
    """Return boxes with the traffic of every edge up to a round; more traffic has a wider edge.

    Args:
        record: The run.
        number: The round, from 0; by default the last one.
    """
    nodes = record.round(number)["nodes"]
    moved = {name: (figures.get("bytes_down", 0), figures.get("bytes_up", 0)) for name, figures in nodes.items()}
    most = max(map(sum, moved.values()), default=0) or 1

    def content(name: str) -> dict[str, Any]:
        down, up = moved.get(name, (0, 0))
        return {
            "edge": f"↓ {_megabytes(down)}  ↑ {_megabytes(up)}" if down or up else "",
            "edge_width": 1.0 + 6.0 * (down + up) / most,
        }

    return _recorded(record, content)


def of_settings(record: RunRecord) -> Box:
    """Return boxes with the settings of every node of a run, as in `of_topology`."""
    settings = {node["name"]: tuple(node.get("told", ())) for node in record.nodes}
    return _recorded(record, lambda name: {"lines": settings[name]})


def of_names(record: RunRecord) -> Box:
    """Return boxes with only the names."""
    return _recorded(record, lambda name: {})


def _recorded(record: RunRecord, content: Callable[[str], dict[str, Any]]) -> Box:
    """Return the boxes of the recorded tree; `content` maps the name of a node to fields of its box."""

    def box(node: Mapping[str, Any]) -> Box:
        return Box(name=node["name"], children=tuple(map(box, node["children"])), **content(node["name"]))

    return box(record.tree)


def shortened(box: Box, max_rows: int = MAX_ROWS) -> Box:
    """Limit the children of every federation to the same number, so that the topology needs at most `max_rows` rows.

    Args:
        box: The root.
        max_rows: Largest number of rows; if there are more federations, each shows one child.
    """
    if box.num_leaves <= max_rows:
        return box
    candidates = range(1, max(len(inner.children) for inner in box.walk()))
    fit = bisect_right(candidates, max_rows, key=lambda most: _at_most(box, most).num_leaves)
    return _at_most(box, candidates[max(fit - 1, 0)])


def _at_most(box: Box, most: int) -> Box:
    children = tuple(_at_most(child, most) for child in box.children[:most])
    if (left := len(box.children) - most) > 0:
        children += (Box(name="", lines=(f"and {left:,} more",)),)
    return replace(box, children=children)


def _scores(figures: Mapping[str, Any]) -> dict[str, float]:
    return {moment: or_infinity(figures[moment]["perplexity"]) for moment in MOMENTS if moment in figures}


def _megabytes(number: int) -> str:
    return f"{number / 1e6:,.1f} MB"
