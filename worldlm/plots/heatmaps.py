"""Plots of attention weights and of the routes of residuals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure

from worldlm.plots.boxes import MAX_ROWS
from worldlm.plots.style import COLOURS, INCHES, shorten
from worldlm.runs.results import RunRecord

T = TypeVar("T")


def attention(group: Sequence[RunRecord], inches: float = INCHES) -> Figure:
    """Draw a method's attention weights of the last round, as means over seeds.

    Each federation has a panel. A row shows what one receiver got: a child of the federation, or a node below it whose
    residual the federation answered. Columns are the sources.
    """
    federations: dict[str, dict[str, dict[str, list[float]]]] = {}
    for record in group:
        for name, receivers in record.mixtures.items():
            for receiver, weights in receivers.items():
                row = federations.setdefault(name, {}).setdefault(receiver, {})
                for source, weight in weights.items():
                    row.setdefault(source, []).append(weight)
    shown = _first(federations)
    heights = [1 + len(rows) for rows in shown.values()]
    figure = Figure(figsize=(inches, 0.8 + sum(0.6 + 0.35 * height for height in heights)), layout="constrained")
    panels = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights).flatten().tolist()
    for (name, rows), axes in zip(shown.items(), panels, strict=True):
        sources = [*dict.fromkeys([*rows, *(source for row in rows.values() for source in row)])]
        sources = [source for source in sources if any(source in row for row in rows.values())][:_MAX_COLUMNS]
        grid = np.array([[sum(row.get(source, ())) / len(group) for source in sources] for row in rows.values()])
        image = axes.imshow(grid, aspect="auto", vmin=0, vmax=1, cmap=WEIGHTS, interpolation="nearest")
        for (i, j), weight in np.ndenumerate(grid):
            if weight >= _LEAST_LABELLED:
                axes.annotate(f"{weight:.2f}", xy=(j, i), ha="center", va="center", fontsize="small")
        axes.set_yticks(range(len(rows)), map(shorten, rows))
        axes.set_xticks(range(len(sources)), map(shorten, sources), rotation=30 if len(sources) > 6 else 0, ha="center")
        axes.set_title(f"mixtures of {shorten(name)}", loc="left", fontsize="medium")
    figure.colorbar(image, ax=panels, label="attention weight", fraction=0.04, pad=0.04)
    which = "" if len(shown) == len(federations) else f" of {len(shown)} of {len(federations):,} federations"
    figure.suptitle(_title(f"attention{which} in the last round: who receives from whom", group))
    return figure


_MAX_COLUMNS = 24
_LEAST_LABELLED = 0.005

WEIGHTS = LinearSegmentedColormap.from_list("weights", [to_rgba(COLOURS[1], 0.0), to_rgba(COLOURS[1], 0.65)])
"""Translucent, so that text is readable on a white and on a dark page."""


def residuals(group: Sequence[RunRecord]) -> Figure:
    """Draw how often residuals of each origin were answered, by the source that the answer attends to most.

    Numbers are over all rounds, as means over seeds.
    """
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


def _first(federations: Mapping[str, dict[str, T]]) -> dict[str, dict[str, T]]:
    """Return as many federations and receivers as fit into a plot, in order."""
    shown: dict[str, dict[str, T]] = {}
    for name, receivers in federations.items():
        if (room := MAX_ROWS - sum(map(len, shown.values()))) > 0:
            shown[name] = dict(islice(receivers.items(), room))
    return shown


def _title(what: str, group: Sequence[RunRecord]) -> str:
    return f"{group[0].method}: {what}" + (f", mean over {len(group)} seeds" if len(group) > 1 else "")
