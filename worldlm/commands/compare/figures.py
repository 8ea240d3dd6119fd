"""Pictures of a comparison, each a pure function from records to a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from worldlm.commands.compare.records import by_method, common_nodes
from worldlm.commands.compare.table import Spread, spread
from worldlm.plots.heatmaps import attention, residuals
from worldlm.plots.style import COLOURS, INCHES
from worldlm.runs.results import MOMENTS, Moment, RunRecord

_STYLES = dict(zip(MOMENTS, ("solid", "dotted"), strict=True))
_TOLD = ": solid after_merge, dotted after_fit"
_MARKERS = (None, "o", "s", "^")
"""Of the first methods, and of those for which no colour is left."""
_FAR = 1e100  # matplotlib's scales overflow not far above
_TOP = 1e6  # knowing nothing has the perplexity of the vocabulary, which is smaller


def draw_all(records: Sequence[RunRecord]) -> dict[str, Figure]:
    """Return all pictures that the records have something for, by name."""
    figures = {"perplexity_by_round": by_round(records), "perplexity_by_megabytes": by_megabytes(records)}
    for method, group in by_method(records).items():
        if any(one["attention"] for record in group for one in record.rounds):
            figures[f"attention_{method}"] = attention(group)
        if any(record.routes for record in group):
            figures[f"residuals_{method}"] = residuals(group)
    if len({one.topology for one in records}) > 1 and len({one.root for one in records}) == 1:
        figures["perplexity_by_topology"] = by_round(records, [records[0].root, *common_nodes(records)])
    if any(one.noise_multiplier is not None for one in records):
        figures["perplexity_by_noise"] = by_noise(records)
    return figures


def by_round(records: Sequence[RunRecord], nodes: Sequence[str] = ()) -> Figure:
    """Draw perplexity by round, a panel for each node: after_merge solid, after_fit dotted.

    Lines are means over seeds; the band around after_merge is a standard deviation to either side. The nodes are by
    default the data nodes that all runs have.
    """
    nodes = nodes or common_nodes(records)
    columns = min(math.ceil(math.sqrt(len(nodes))), 3)
    lines = math.ceil(len(nodes) / columns)
    figure = Figure(figsize=(INCHES, 1.0 + 3.2 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for node, axes in zip(nodes, panels, strict=False):
        _draw_node(axes, records, node)
    for axes in panels[len(nodes) :]:
        axes.set_axis_off()
    for i in range(0, len(nodes), columns):
        panels[i].set_ylabel("perplexity")
    several = any(len(group) > 1 for group in by_method(records).values())
    _legend(figure, panels[0], f"held-out perplexity by round{_TOLD}{'; band: standard deviation' if several else ''}")
    return figure


def by_round_at(records: Sequence[RunRecord], node: str) -> Figure:
    """Draw a panel of `by_round` by itself, as small as a telephone, without title and legend."""
    figure = Figure(figsize=(4.0, 2.9), layout="constrained")
    axes = figure.subplots()
    _draw_node(axes, records, node)
    axes.set_ylabel("perplexity")
    return figure


def by_megabytes(records: Sequence[RunRecord], inches: float = INCHES) -> Figure:
    """Draw the mean perplexity over data nodes against what was moved; a method that moves nothing is a level line.

    Args:
        records: The runs.
        inches: Width of the picture.
    """
    nodes = common_nodes(records)
    figure = Figure(figsize=(inches, 1.6 + 0.4 * inches), layout="constrained")
    axes = figure.subplots()
    for (method, group), look in zip(by_method(records).items(), looks(), strict=False):
        moved = mean_curve([one.megabytes() for one in group])
        for moment in MOMENTS:
            curve = mean_curve([_mean_over_nodes(one, nodes, moment) for one in group])
            shared = sorted(curve.keys() & moved.keys())
            label, style = method if moment == MOMENTS[0] else None, _STYLES[moment]
            if shared and not any(figure.mean for figure in moved.values()):
                axes.axhline(curve[shared[-1]].mean, **look, linestyle=style, label=label)
                continue
            x, y = [moved[one].mean for one in shared], [min(curve[one].mean, _FAR) for one in shared]
            axes.plot(x, y, **look, linestyle=style, label=label)
    axes.set_xlabel("MB moved over all edges")
    axes.set_ylabel("perplexity, mean over data nodes")
    _scale(axes)
    _legend(figure, axes, f"held-out perplexity by traffic{_TOLD}")
    return figure


def by_noise(records: Sequence[RunRecord], inches: float = INCHES) -> Figure:
    """Draw the mean perplexity over data nodes after the last round against the noise, a line for each method.

    What stands before the first `+` of a method's name is the method; where it was run without privacy too, that is a
    level line, dashed. Where a perplexity is no finite number, the line has no point.

    Args:
        records: The runs.
        inches: Width of the picture.
    """
    nodes = common_nodes(records)
    figure = Figure(figsize=(inches, 1.6 + 0.4 * inches), layout="constrained")
    axes = figure.subplots()
    families: dict[str, dict[float | None, list[RunRecord]]] = {}
    for one in records:
        family = families.setdefault(one.method.partition("+")[0], {})
        family.setdefault(one.noise_multiplier, []).append(one)
    for (method, groups), look in zip(families.items(), looks(), strict=False):
        found = {
            noise: spread(_mean_over_nodes(one, nodes, "after_merge").get(len(one.rounds)) for one in group)
            for noise, group in groups.items()
        }
        noisy = sorted((noise, one.mean) for noise, one in found.items() if noise is not None and one is not None)
        axes.plot(*zip(*noisy, strict=True), **{**look, "marker": "o", "markevery": 1}, label=method) if noisy else None
        if (plain := found.get(None)) is not None:
            axes.axhline(plain.mean, **look, linestyle="dashed", label=None if noisy else method)
    axes.set_xscale("symlog", linthresh=min((one for one in _noises(records) if one > 0), default=1.0))
    axes.set_xticks(_noises(records), [f"{one:g}" for one in _noises(records)])
    axes.set_xlabel("noise multiplier; 0 only clips; dashed: without privacy")
    axes.set_ylabel("perplexity after_merge, mean over data nodes")
    _scale(axes)
    _legend(figure, axes, "held-out perplexity under update-level privacy")
    return figure


# ---------------------------------------------------------------------- numbers


def _noises(records: Sequence[RunRecord]) -> list[float]:
    return sorted({one.noise_multiplier for one in records if one.noise_multiplier is not None})


def mean_curve(curves: Sequence[dict[int, float]]) -> dict[int, Spread]:
    """Return mean and standard deviation by round, for the rounds that all curves have."""
    shared = [x for x in curves[0] if all(x in curve for curve in curves)]
    found = {x: spread(curve[x] for curve in curves) for x in shared}
    return {x: one for x, one in found.items() if one is not None}


def _mean_over_nodes(record: RunRecord, nodes: Sequence[str], moment: Moment) -> dict[int, float]:
    return {x: one.mean for x, one in mean_curve([record.series(node, moment) for node in nodes]).items()}


# ---------------------------------------------------------------------- strokes


def looks() -> list[dict[str, Any]]:
    """Return what tells methods apart, in their order."""
    return [
        {"color": colour, "marker": marker, "markersize": 4, "markevery": 0.1, "linewidth": 1.4}
        for marker in _MARKERS
        for colour in COLOURS
    ]


def _draw_node(axes: Axes, records: Sequence[RunRecord], node: str) -> None:
    for (method, group), look in zip(by_method(records).items(), looks(), strict=False):
        for moment in MOMENTS:
            curve = mean_curve([one.series(node, moment) for one in group])
            _draw_curve(axes, curve, look, moment, method if moment == MOMENTS[0] else None)
    axes.set_title(node)
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _scale(axes)


def _draw_curve(axes: Axes, curve: dict[int, Spread], look: dict[str, Any], moment: Moment, label: str | None) -> None:
    x, means = list(curve), [min(one.mean, _FAR) for one in curve.values()]
    axes.plot(
        x,
        means,
        **{**look, "marker": "o", "markevery": 1} if len(x) == 1 else look,
        linestyle=_STYLES[moment],
        label=label,
    )
    if moment == MOMENTS[0] and any(one.deviation for one in curve.values()):
        low = [one.mean - (one.deviation or 0.0) for one in curve.values()]
        high = [one.mean + (one.deviation or 0.0) for one in curve.values()]
        axes.fill_between(x, low, high, color=look["color"], alpha=0.2, linewidth=0)


def _scale(axes: Axes) -> None:
    """Take a logarithmic axis where perplexities differ by more than four times, with plain numbers on it.

    A line that climbs far beyond any vocabulary leaves the picture, which would otherwise show nothing else.
    """
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    low, high = axes.dataLim.intervaly
    if not 0 < 4 * low < high:
        return
    if low < _TOP < high:
        axes.set_ylim(low / 1.3, _TOP)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(plain := ScalarFormatter())
    plain.set_scientific(False)
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, axes: Axes, title: str) -> None:
    figure.suptitle(title)
    handles, labels = axes.get_legend_handles_labels()
    letters = round(11 * figure.get_figwidth())
    columns = max(1, min(len(labels), 5, letters // (max(map(len, labels), default=0) + 8)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
