"""Pictures of what federations attend to, and of where residuals found a home."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from worldlm.plots.boxes import MAX_ROWS
from worldlm.plots.style import INCHES
from worldlm.runs.results import RunRecord


def attention(group: Sequence[RunRecord], inches: float = INCHES) -> Figure:
    """Draw a method's attention weights by round, a panel for each federation, as means over seeds.

    Colours tell how far a weight is from an equal share, which no share that differs by less than 0.05 makes loud.
    """
    federations: dict[str, list[str]] = {}
    for one in (one for record in group for one in record.rounds):
        for name, weights in one["attention"].items():
            known = federations.setdefault(name, [])
            known += [child for child in weights if child not in known]
    shown = _first(federations)
    heights = [len(children) for children in shown.values()]
    figure = Figure(figsize=(inches, 1.2 + sum(0.7 + 0.4 * height for height in heights)), layout="constrained")
    panels = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights).flatten().tolist()
    rounds = sorted({one["round"] + 1 for record in group for one in record.rounds})
    grids = {
        name: np.array([[_weight(group, number, name, child) for number in rounds] for child in children])
        for name, children in shown.items()
    }
    from_equal = {name: grid - 1 / len(federations[name]) for name, grid in grids.items()}
    most = max(0.05, *(float(np.nanmax(np.abs(grid), initial=0.0)) for grid in from_equal.values()))
    for (name, children), axes in zip(shown.items(), panels, strict=True):
        edges = (rounds[0] - 0.5, rounds[-1] + 0.5, len(children) - 0.5, -0.5)
        image = axes.imshow(
            from_equal[name], aspect="auto", extent=edges, vmin=-most, vmax=most, cmap="PuOr_r", interpolation="nearest"
        )
        for (row, column), weight in np.ndenumerate(grids[name] if len(rounds) <= _MAX_TOLD else np.empty((0, 0))):
            if not math.isnan(weight):
                axes.text(rounds[column], row, f"{weight:.2f}", fontsize="small", ha="center", va="center", color=_INK)
        axes.set_yticks(range(len(children)), children)
        axes.set_title(f"{name} attends to", loc="left", fontsize="medium")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panels[-1].set_xlabel("round")
    figure.colorbar(image, ax=panels, label="attention weight, less an equal share", fraction=0.04)
    which = "the federations" if len(shown) == len(federations) else f"{len(shown)} of {len(federations):,} federations"
    figure.suptitle(_title(f"attention of {which}", group))
    return figure


_MAX_TOLD = 12  # rounds for whose numbers there is room
_INK = "#222222"  # on the colours of a heatmap, whatever is around it


def residuals(group: Sequence[RunRecord]) -> Figure:
    """Draw which homes a method's residuals found, by origin: how many in all rounds, as means over seeds."""
    counts = sum((one.routes for one in group), Counter[tuple[str, str]]())
    origins, homes = sorted({origin for origin, _ in counts}), sorted({home for _, home in counts})
    grid = [[counts[origin, home] / len(group) for home in homes] for origin in origins]
    figure = Figure(figsize=(INCHES, 1.6 + 0.6 * len(origins)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(grid, aspect="auto", vmin=0, cmap="cividis")
    axes.set_xticks(range(len(homes)), homes)
    axes.set_yticks(range(len(origins)), origins)
    axes.set_xlabel("went to")
    axes.set_ylabel("residual of")
    figure.colorbar(image, ax=axes, label="residuals a run")
    figure.suptitle(_title("where residuals found a home", group))
    return figure


def _first(federations: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the first federations that a picture has room for, and of each the first participants."""
    shown: dict[str, list[str]] = {}
    for name, children in federations.items():
        if (room := MAX_ROWS - sum(map(len, shown.values()))) > 0:
            shown[name] = children[:room]
    return shown


def _title(what: str, group: Sequence[RunRecord]) -> str:
    return f"{group[0].method}: {what}" + (f", mean over {len(group)} seeds" if len(group) > 1 else "")


def _weight(group: Sequence[RunRecord], number: int, federation: str, child: str) -> float:
    weights = [
        one["attention"].get(federation, {}).get(child)
        for record in group
        for one in record.rounds
        if one["round"] + 1 == number
    ]
    known = [float(one) for one in weights if one is not None]
    return statistics.fmean(known) if known and len(known) == len(weights) else math.nan
