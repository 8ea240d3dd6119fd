"""Pictures of what federations attend to, and of where residuals found a home."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from worldlm.pictures.boxes import MAX_ROWS
from worldlm.pictures.strokes import INCHES
from worldlm.results import RunRecord


def attention(group: Sequence[RunRecord]) -> Figure:
    """Draw a method's attention weights by round, a panel for each federation, as means over seeds."""
    federations: dict[str, list[str]] = {}
    for one in (one for record in group for one in record.rounds):
        for name, weights in one["attention"].items():
            known = federations.setdefault(name, [])
            known += [child for child in weights if child not in known]
    federations, all_ = _first(federations), len(federations)
    heights = [len(children) for children in federations.values()]
    figure = Figure(figsize=(INCHES, 1.2 + sum(0.7 + 0.4 * height for height in heights)), layout="constrained")
    panels = figure.subplots(len(federations), 1, squeeze=False, height_ratios=heights).flatten().tolist()
    rounds = sorted({one["round"] + 1 for record in group for one in record.rounds})
    for (name, children), axes in zip(federations.items(), panels, strict=True):
        grid = [[_weight(group, number, name, child) for number in rounds] for child in children]
        edges = (rounds[0] - 0.5, rounds[-1] + 0.5, len(children) - 0.5, -0.5)
        image = axes.imshow(grid, aspect="auto", extent=edges, vmin=0, vmax=1, cmap="cividis", interpolation="nearest")
        axes.set_yticks(range(len(children)), children)
        axes.set_title(f"{name} attends to", loc="left", fontsize="medium")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[-1].set_xlabel("round")
    figure.colorbar(image, ax=panels, label="attention weight", fraction=0.04)
    which = "the federations" if len(federations) == all_ else f"{len(federations)} of {all_:,} federations"
    figure.suptitle(_title(f"attention of {which}", group))
    return figure


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
