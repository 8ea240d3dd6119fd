"""A plot of the privacy budget that every node has spent."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import fill

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from worldlm.plots.style import COLOURS, INCHES, shorten
from worldlm.runs.guarantees import meanings, unit, warnings
from worldlm.runs.results import RunRecord
from worldlm.topology.errors import join_names

_MAX_MEANINGS = 3

KINDS = {"epsilon": "max_epsilon", "example_epsilon": "max_example_epsilon"}
"""Name of a spent epsilon, of updates or of examples -> name of its limit in the record of a node."""


def budget(record: RunRecord, inches: float = INCHES) -> Figure:
    """Draw epsilon by round for every private node, and its max_epsilon as a dashed line of the same colour.

    Nodes with equal values in all rounds share a line. A node without a bound (noise 0) appears only in the legend.
    """
    figure = Figure(figsize=(inches, 4.6), layout="constrained")
    axes = figure.subplots()
    for i, ((kind, unit_name, limit, curve), names) in enumerate(_shared(record).items()):
        colour = COLOURS[i % len(COLOURS)]
        label = f"{_list(names)}{f' (for {unit(kind, unit_name)})' if kind == 'example_epsilon' else ''}"
        label += "" if limit is None else f", at most {limit:g}"
        bounded = [(number, value) for number, value in curve if value is not None]
        axes.plot(*zip(*bounded, strict=True) if bounded else ((), ()), marker="o", markersize=3, color=colour,
                  label=label if bounded else f"{label}: no bound")  # fmt: skip
        if limit is not None:
            axes.axhline(limit, color=colour, linestyle="dashed", linewidth=1)
    axes.set_xlabel("round")
    axes.set_ylabel("epsilon")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    lines = [
        "privacy spent by round; dashed: max_epsilon",
        *meanings(record.nodes)[:_MAX_MEANINGS],
        *warnings(_last(record)),
    ]
    figure.suptitle("\n".join(fill(line, round(12 * inches)) for line in lines), fontsize="medium")
    return figure


Curve = tuple[tuple[int, float | None], ...]


def _shared(record: RunRecord) -> dict[tuple[str, str | None, float | None, Curve], list[str]]:
    curves: dict[tuple[str, str | None, float | None, Curve], list[str]] = {}
    for name, kind, unit_name, limit in _private(record):
        curve = tuple(
            (entry["round"] + 1, entry["nodes"][name][kind])
            for entry in record.rounds
            if kind in entry["nodes"].get(name, {})
        )
        if curve:
            curves.setdefault((kind, unit_name, limit, curve), []).append(name)
    return curves


def _last(record: RunRecord) -> Iterator[tuple[str, float | None]]:
    for name, figures in record.round()["nodes"].items():
        yield from ((name, figures[kind]) for kind in KINDS if kind in figures)


def _private(record: RunRecord) -> Iterator[tuple[str, str, str | None, float | None]]:
    for node in record.nodes:
        for kind, limit in KINDS.items():
            yield node["name"], kind, node.get("example_unit"), node.get(limit)


def _list(names: list[str]) -> str:
    return join_names(map(shorten, names), 3)
