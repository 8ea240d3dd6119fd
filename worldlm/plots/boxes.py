"""What a picture of a world says at every node."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from worldlm.runs.results import MOMENTS, RunRecord
from worldlm.topology import Node, Topology
from worldlm.topology.draw import facts

MAX_ROWS = 48
"""Leaves that a picture shows at most; of a wider world the first children of every federation stand for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A node in a picture, with all below it."""

    name: str
    """Its name; empty where it stands for those that are not drawn."""
    lines: tuple[str, ...] = ()
    """What is told below its name."""
    shade: float = 0.0
    """How strongly it is coloured, in [0, 1]."""
    edge: str = ""
    """What is told on the edge to its parent."""
    edge_width: float = 1.0
    """Width of that edge, in points."""
    children: tuple[Box, ...] = ()
    """The participants of its federation."""

    def walk(self) -> Iterator[Box]:
        """Yield this box and all below it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()

    @property
    def num_leaves(self) -> int:
        """Rows that it takes."""
        return sum(child.num_leaves for child in self.children) or 1


def of_topology(topology: Topology) -> Box:
    """Tell what holds at every node, as `worldlm.topology.draw_tree` does."""

    def box(node: Node, above: Node | None) -> Box:
        children = tuple(box(child, node) for child in node.children)
        return Box(name=node.name, lines=tuple(facts(node, above)), children=children)

    return box(topology.root, None)


def of_perplexity(record: RunRecord, number: int | None = None) -> Box:
    """Tell every node's perplexities after a round: the better it predicts its own text, the stronger its colour.

    Args:
        record: The run.
        number: The round, from 0; by default the last one.
    """
    nodes = record.round(number)["nodes"]
    scores = {name: _scores(figures) for name, figures in nodes.items()}
    logs = {name: math.log(min(told.values())) for name, told in scores.items() if told}
    low, high = min(logs.values(), default=0.0), max(logs.values(), default=0.0)

    def tell(name: str) -> dict[str, Any]:
        told = scores.get(name, {})
        return {
            "lines": tuple(f"{figure(value)} {moment}" for moment, value in told.items()),
            "shade": 1.0 - 0.8 * (logs[name] - low) / (high - low) if name in logs and high > low else 0.5 * bool(told),
        }

    return _recorded(record, tell)


def of_traffic(record: RunRecord, number: int | None = None) -> Box:
    """Tell what went over every edge up to a round: the more, the wider.

    Args:
        record: The run.
        number: The round, from 0; by default the last one.
    """
    nodes = record.round(number)["nodes"]
    moved = {name: (one.get("bytes_down", 0), one.get("bytes_up", 0)) for name, one in nodes.items()}
    most = max(map(sum, moved.values()), default=0) or 1

    def tell(name: str) -> dict[str, Any]:
        down, up = moved.get(name, (0, 0))
        return {
            "edge": f"↓ {_megabytes(down)}  ↑ {_megabytes(up)}" if down or up else "",
            "edge_width": 1.0 + 6.0 * (down + up) / most,
        }

    return _recorded(record, tell)


def of_settings(record: RunRecord) -> Box:
    """Tell what held at every node of a run, as `of_topology` does."""
    told = {node["name"]: tuple(node.get("told", ())) for node in record.nodes}
    return _recorded(record, lambda name: {"lines": told[name]})


def of_names(record: RunRecord) -> Box:
    """Tell the names alone."""
    return _recorded(record, lambda name: {})


def _recorded(record: RunRecord, tell: Callable[[str], dict[str, Any]]) -> Box:
    """Return the recorded tree; `tell` gives what is told at a node, by its name."""

    def box(node: Mapping[str, Any]) -> Box:
        return Box(name=node["name"], children=tuple(map(box, node["children"])), **tell(node["name"]))

    return box(record.tree)


def shortened(box: Box, max_rows: int = MAX_ROWS) -> Box:
    """Draw fewer children of every federation, equally many of each, so that a world has at most so many rows.

    Args:
        box: A world.
        max_rows: Rows wanted; where there are more federations than that, each shows one child.
    """
    if box.num_leaves <= max_rows:
        return box
    candidates = range(1, max(len(one.children) for one in box.walk()))
    fit = bisect_right(candidates, max_rows, key=lambda most: _at_most(box, most).num_leaves)
    return _at_most(box, candidates[max(fit - 1, 0)])


def _at_most(box: Box, most: int) -> Box:
    children = tuple(_at_most(child, most) for child in box.children[:most])
    if (left := len(box.children) - most) > 0:
        children += (Box(name="", lines=(f"and {left:,} more",)),)
    return replace(box, children=children)


def _scores(figures: Mapping[str, Any]) -> dict[str, float]:
    told = {moment: figures.get(moment, {}).get("perplexity") for moment in MOMENTS}
    return {moment: value for moment, value in told.items() if value is not None}


def figure(value: float) -> str:
    """Write a perplexity, which noise can drive beyond all measure."""
    return f"{value:,.2f}" if value < 1e6 else f"{value:.1e}"


def _megabytes(number: int) -> str:
    return f"{number / 1e6:,.1f} MB"
