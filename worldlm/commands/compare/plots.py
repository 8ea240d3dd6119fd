"""The pictures of a comparison. Each is a pure function from records to a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from worldlm.commands.compare.records import by_method, common_nodes
from worldlm.commands.compare.table import Spread, spread
from worldlm.plots.curves import MAX_DRAWN, perplexity_scale
from worldlm.plots.heatmaps import attention, residuals
from worldlm.plots.style import COLOURS, INCHES, shorten
from worldlm.runs.results import MOMENTS, Moment, RunRecord
from worldlm.runs.scores import scored

_DASHES = dict(zip(MOMENTS, ("solid", "dotted"), strict=True))
_MOMENT_LEGEND = ": solid after_merge, dotted after_fit"
_MARKERS = (None, "o", "s", "^")
"""Markers of the first methods, and of later ones, which use the colours again."""


def draw_all(records: Sequence[RunRecord]) -> dict[str, Figure]:
    """Return all pictures for which the records have data, by name."""
    figures = {"perplexity_by_round": by_round(records), "perplexity_by_megabytes": by_megabytes(records)}
    for method, group in by_method(records).items():
        if any(record.mixtures for record in group):
            figures[f"attention_{method}"] = attention(group)
        if any(record.routes for record in group):
            figures[f"residuals_{method}"] = residuals(group)
    if len({record.topology for record in records}) > 1 and len({record.root for record in records}) == 1:
        figures["perplexity_by_topology"] = by_round(records, [records[0].root, *common_nodes(records)])
    if any(record.noise_multiplier is not None for record in records):
        figures["perplexity_by_noise"] = by_noise(records)
    return figures


def by_round(records: Sequence[RunRecord], nodes: Sequence[str] = ()) -> Figure:
    """Draw perplexity by round, a panel for each node: after_merge solid, after_fit dotted.

    Lines are means over seeds. The band around after_merge is one standard deviation on either side. By default, the
    nodes are the data nodes that all runs have.
    """
    nodes = nodes or common_nodes(records)
    columns = min(math.ceil(math.sqrt(len(nodes))), 3)
    lines = math.ceil(len(nodes) / columns)
    figure = Figure(figsize=(INCHES, 1.0 + 3.2 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for node, axes in zip(nodes, panels, strict=False):
        _draw_node(axes, records, node)
        axes.set_title(shorten(node))
    for axes in panels[len(nodes) :]:
        axes.set_axis_off()
    for i in range(0, len(nodes), columns):
        panels[i].set_ylabel("perplexity")
    several = any(len(group) > 1 for group in by_method(records).values())
    _legend(
        figure,
        panels[0],
        f"held-out perplexity by round{_MOMENT_LEGEND}{'; band: standard deviation' if several else ''}",
    )
    return figure


def round_panel(records: Sequence[RunRecord], node: str) -> Figure:
    """Draw one panel of `by_round`, without title and legend, for a small screen."""
    figure = Figure(figsize=(4.0, 2.9), layout="constrained")
    axes = figure.subplots()
    _draw_node(axes, records, node)
    axes.set_ylabel("perplexity")
    return figure


def by_megabytes(records: Sequence[RunRecord], inches: float = INCHES) -> Figure:
    """Draw the mean perplexity over data nodes against traffic. A method without traffic is a horizontal line.

    Args:
        records: The runs.
        inches: Width of the picture.
    """
    having = {moment: scored(records, common_nodes(records), moment) for moment in MOMENTS}
    figure = Figure(figsize=(inches, 1.6 + 0.4 * inches), layout="constrained")
    axes = figure.subplots()
    for (method, group), style in zip(by_method(records).items(), line_styles(), strict=False):
        moved = mean_curve([record.megabytes() for record in group])
        for moment in MOMENTS:
            curve = mean_curve([_mean_over_nodes(record, having[moment], moment) for record in group])
            rounds = sorted(curve.keys() & moved.keys())
            label, dashes = method if moment == MOMENTS[0] else None, _DASHES[moment]
            if rounds and not any(spread_.mean for spread_ in moved.values()):
                axes.axhline(curve[rounds[-1]].mean, **style, linestyle=dashes, label=label)
                continue
            x, y = [moved[number].mean for number in rounds], [min(curve[number].mean, MAX_DRAWN) for number in rounds]
            axes.plot(x, y, **style, linestyle=dashes, label=label)
    axes.set_xlabel("MB over all edges")
    axes.set_ylabel("perplexity, mean over data nodes")
    perplexity_scale(axes)
    _legend(figure, axes, f"held-out perplexity by traffic{_MOMENT_LEGEND}")
    return figure


def by_noise(records: Sequence[RunRecord], inches: float = INCHES) -> Figure:
    """Draw the mean perplexity over data nodes after the last round against the noise, a line for each method.

    A method's name up to the first `+` is the method. A run of it without privacy is a dashed horizontal line. A
    line has no point where the perplexity is not finite.

    Args:
        records: The runs.
        inches: Width of the picture.
    """
    nodes = scored(records, common_nodes(records), "after_merge")
    figure = Figure(figsize=(inches, 1.6 + 0.4 * inches), layout="constrained")
    axes = figure.subplots()
    families: dict[str, dict[float | None, list[RunRecord]]] = {}
    for record in records:
        family = families.setdefault(record.method.partition("+")[0], {})
        family.setdefault(record.noise_multiplier, []).append(record)
    for (method, groups), style in zip(families.items(), line_styles(), strict=False):
        found = {
            noise: spread(_mean_over_nodes(run, nodes, "after_merge").get(len(run.rounds)) for run in group)
            for noise, group in groups.items()
        }
        finite = {noise: value for noise, value in found.items() if value is not None and math.isfinite(value.mean)}
        noisy = sorted((noise, value.mean) for noise, value in finite.items() if noise is not None)
        if noisy:
            axes.plot(*zip(*noisy, strict=True), **{**style, "marker": "o", "markevery": 1}, label=method)
        if (without := finite.get(None)) is not None:
            axes.axhline(without.mean, **style, linestyle="dashed", label=None if noisy else method)
    noises = _noises(records)
    axes.set_xscale("symlog", linthresh=min((noise for noise in noises if noise > 0), default=1.0))
    axes.set_xticks(noises, [f"{noise:g}" for noise in noises])
    axes.set_xlabel("noise multiplier; 0 only clips; dashed: without privacy")
    axes.set_ylabel("perplexity after_merge, mean over data nodes")
    perplexity_scale(axes)
    _legend(figure, axes, "held-out perplexity under update-level privacy")
    return figure


# ---------------------------------------------------------------------- numbers


def _noises(records: Sequence[RunRecord]) -> list[float]:
    return sorted({record.noise_multiplier for record in records if record.noise_multiplier is not None})


def mean_curve(curves: Sequence[dict[int, float]]) -> dict[int, Spread]:
    """Return mean and standard deviation by round, for the rounds that all curves have."""
    shared = [x for x in (curves[0] if curves else ()) if all(x in curve for curve in curves)]
    found = {x: spread(curve[x] for curve in curves) for x in shared}
    return {x: value for x, value in found.items() if value is not None}


def _mean_over_nodes(record: RunRecord, nodes: Sequence[str], moment: Moment) -> dict[int, float]:
    curves = [record.series(node, moment) for node in nodes]
    return {x: value.mean for x, value in mean_curve(curves).items()}


# ---------------------------------------------------------------------- drawing


def line_styles() -> list[dict[str, Any]]:
    """Return colours and markers that distinguish methods, in their order."""
    return [
        {"color": colour, "marker": marker, "markersize": 4, "markevery": 0.1, "linewidth": 1.4}
        for marker in _MARKERS
        for colour in COLOURS
    ]


def _draw_node(axes: Axes, records: Sequence[RunRecord], node: str) -> None:
    for (method, group), style in zip(by_method(records).items(), line_styles(), strict=False):
        for moment in MOMENTS:
            curve = mean_curve([record.series(node, moment) for record in group])
            _draw_curve(axes, curve, style, moment, method if moment == MOMENTS[0] else None)
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    perplexity_scale(axes)


def _draw_curve(axes: Axes, curve: dict[int, Spread], style: dict[str, Any], moment: Moment, label: str | None) -> None:
    x, means = list(curve), [min(value.mean, MAX_DRAWN) for value in curve.values()]
    axes.plot(
        x,
        means,
        **{**style, "marker": "o", "markevery": 1} if len(x) == 1 else style,
        linestyle=_DASHES[moment],
        label=label,
    )
    if moment == MOMENTS[0] and any(value.deviation for value in curve.values()):
        deviations = [value.deviation or 0.0 for value in curve.values()]
        low, high = (
            [mean + sign * deviation for mean, deviation in zip(means, deviations, strict=True)] for sign in (-1, 1)
        )
        axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)


def _legend(figure: Figure, axes: Axes, title: str) -> None:
    figure.suptitle(title)
    handles, labels = axes.get_legend_handles_labels()
    characters = round(11 * figure.get_figwidth())
    columns = max(1, min(len(labels), 5, characters // (max(map(len, labels), default=0) + 8)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
