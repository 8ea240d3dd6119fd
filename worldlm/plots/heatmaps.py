"""Plots of attention weights and of the destinations of residuals."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from worldlm.plots.boxes import MAX_ROWS
from worldlm.plots.style import COLOURS, INCHES, shorten
from worldlm.runs.results import RunRecord


def attention(group: Sequence[RunRecord], inches: float = INCHES) -> Figure:
    """Draw a method's attention weights by round, with a panel for each federation, as means over seeds.

    Colours show the difference of a weight from an equal share, which is grey. The scale covers at least 0.05 in both
    directions. With many rounds, the numbers are those of the last round, on the right.
    """
    federations: dict[str, list[str]] = {}
    for entry in (entry for record in group for entry in record.rounds):
        for name, weights in entry["attention"].items():
            participants = federations.setdefault(name, [])
            participants += [child for child in weights if child not in participants]
    shown = _first(federations)
    heights = [len(children) for children in shown.values()]
    figure = Figure(figsize=(inches, 1.2 + sum(0.7 + 0.4 * height for height in heights)), layout="constrained")
    panels = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights).flatten().tolist()
    rounds = sorted({entry["round"] + 1 for record in group for entry in record.rounds})
    grids = {
        name: np.array([[_weight(group, number, name, child) for number in rounds] for child in children])
        for name, children in shown.items()
    }
    from_equal = {name: grid - 1 / len(federations[name]) for name, grid in grids.items()}
    is_labelled = len(rounds) <= _MAX_LABELLED_ROUNDS
    most = max(0.05, *(float(np.nanmax(np.abs(grid), initial=0.0)) for grid in from_equal.values()))
    for (name, children), axes in zip(shown.items(), panels, strict=True):
        edges = (rounds[0] - 0.5, rounds[-1] + 0.5, len(children) - 0.5, -0.5)
        image = axes.imshow(
            from_equal[name], aspect="auto", extent=edges, vmin=-most, vmax=most, cmap=SHARES, interpolation="nearest"
        )
        for (row, column), weight in np.ndenumerate(grids[name] if is_labelled else grids[name][:, -1:]):
            if not math.isnan(weight):
                place = {"xy": (rounds[column], row), "ha": "center"} if is_labelled else {"xy": (1.01, row), **_RIGHT}
                axes.annotate(f"{weight:.2f}", **place, fontsize="small", va="center")
        axes.set_yticks(range(len(children)), map(shorten, children))
        equal = 1 / len(federations[name])
        axes.set_title(f"{shorten(name)} attends to (equal share {equal:.2g})", loc="left", fontsize="medium")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panels[-1].set_xlabel("round")
    figure.colorbar(image, ax=panels, label="attention weight minus an equal share", fraction=0.04, pad=0.08)
    which = "the federations" if len(shown) == len(federations) else f"{len(shown)} of {len(federations):,} federations"
    which += "" if is_labelled else f"; numbers: round {rounds[-1]}"
    figure.suptitle(_title(f"attention of {which}", group))
    return figure


_RIGHT = {"xycoords": ("axes fraction", "data"), "ha": "left"}
_MAX_LABELLED_ROUNDS = 12  # with more rounds, the numbers do not fit

SHARES = LinearSegmentedColormap.from_list(
    "shares", [to_rgba(COLOURS[0], 0.65), to_rgba(COLOURS[-1], 0.2), to_rgba(COLOURS[1], 0.65)]
)
"""From below to above an equal share; translucent, so that text is readable on a white and on a dark page."""


def residuals(group: Sequence[RunRecord]) -> Figure:
    """Draw the number of a method's residuals by origin and destination, over all rounds, as means over seeds."""
    counts = sum((record.routes for record in group), Counter[tuple[str, str]]())
    origins, homes = sorted({origin for origin, _ in counts}), sorted({home for _, home in counts})
    grid = [[counts[origin, home] / len(group) for home in homes] for origin in origins]
    figure = Figure(figsize=(INCHES, 1.6 + 0.6 * len(origins)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(grid, aspect="auto", vmin=0, cmap="cividis")
    axes.set_xticks(range(len(homes)), homes)
    axes.set_yticks(range(len(origins)), origins)
    axes.set_xlabel("destination")
    axes.set_ylabel("residual of")
    figure.colorbar(image, ax=axes, label="residuals per run")
    figure.suptitle(_title("destinations of residuals", group))
    return figure


def _first(federations: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return as many federations and participants as fit into a plot, in order."""
    shown: dict[str, list[str]] = {}
    for name, children in federations.items():
        if (room := MAX_ROWS - sum(map(len, shown.values()))) > 0:
            shown[name] = children[:room]
    return shown


def _title(what: str, group: Sequence[RunRecord]) -> str:
    return f"{group[0].method}: {what}" + (f", mean over {len(group)} seeds" if len(group) > 1 else "")


def _weight(group: Sequence[RunRecord], number: int, federation: str, child: str) -> float:
    weights = [
        entry["attention"].get(federation, {}).get(child)
        for record in group
        for entry in record.rounds
        if entry["round"] + 1 == number
    ]
    present = [float(weight) for weight in weights if weight is not None]
    return statistics.fmean(present) if present and len(present) == len(weights) else math.nan
