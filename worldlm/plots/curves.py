"""A plot of every node's perplexity by round, and the axis of all such plots."""

from __future__ import annotations

from itertools import product
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from worldlm.plots.style import COLOURS, INCHES, shorten
from worldlm.runs.results import MOMENTS, RunRecord

MAX_NODES = 24
"""Largest number of nodes in a plot: every colour with every kind of line."""

MAX_DRAWN = 1e100
"""Largest perplexity in a plot; the scales of matplotlib overflow not far above."""

_MAX_SHOWN = 1e6  # the perplexity of a uniform guess, the size of the vocabulary, is smaller


def curves(record: RunRecord, inches: float = INCHES) -> Figure:
    """Draw the perplexity of every node by round, a panel for each moment; of a wide world, that of the first nodes.

    Args:
        record: The run.
        inches: Width of the plot.
    """
    nodes = [node["name"] for node in record.nodes]
    series = {moment: {name: record.series(name, moment) for name in nodes[:MAX_NODES]} for moment in MOMENTS}
    measured = [moment for moment, of_nodes in series.items() if any(of_nodes.values())]
    figure = Figure(figsize=(inches, 0.8 + 2.8 * len(measured) + 0.1 * len(series[MOMENTS[0]])), layout="constrained")
    panels = figure.subplots(len(measured), 1, squeeze=False).flatten().tolist()
    lines: dict[str, Any] = {}
    for moment, axes in zip(measured, panels, strict=True):
        for (dashes, colour), (name, curve) in zip(product(_DASHES, COLOURS), series[moment].items(), strict=False):
            if curve:
                values = [min(value, MAX_DRAWN) for value in curve.values()]
                (line,) = axes.plot(list(curve), values, color=colour, linestyle=dashes, **_LINE)
                lines.setdefault(shorten(name), line)
        axes.set_title(moment, loc="left", fontsize="medium")
        axes.set_ylabel("perplexity")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        perplexity_scale(axes)
    panels[-1].set_xlabel("round")
    which = "" if len(nodes) <= MAX_NODES else f", the first {MAX_NODES} of {len(nodes):,} nodes"
    figure.suptitle(f"held-out perplexity by round{which}")
    columns = max(1, int(13 * inches) // (max(map(len, lines), default=0) + 8))
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=min(columns, 5), frameon=False)
    return figure


_DASHES = ("solid", "dashed", "dotted")
_LINE = {"marker": "o", "markersize": 3, "linewidth": 1.4}


def perplexity_scale(axes: Axes) -> None:
    """Use a logarithmic axis with plain numbers if perplexities differ by a factor of more than four.

    A line that rises far above any vocabulary's size leaves the picture, so that the others remain visible.
    """
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    low, high = axes.dataLim.intervaly
    if not 0 < 4 * low < high:
        return
    if low < _MAX_SHOWN < high:
        axes.set_ylim(low / 1.3, _MAX_SHOWN)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(formatter := ScalarFormatter())
    formatter.set_scientific(False)
    axes.yaxis.set_minor_formatter(NullFormatter())
