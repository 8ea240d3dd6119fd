"""A picture of what was spent of every node's privacy budget."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from worldlm.plots.style import COLOURS, INCHES
from worldlm.runs.results import RunRecord

KINDS = {"epsilon": "max_epsilon", "example_epsilon": "max_example_epsilon"}
"""What is spent, of updates and of examples, and under which name a node's budget for it is recorded."""


def budget(record: RunRecord, inches: float = INCHES) -> Figure:
    """Draw epsilon by round for every private node, and its max_epsilon as a dashed line of the same colour.

    Nodes that have spent the same at all times share a line. What has no bound (noise 0) has no line, and is named.
    """
    figure = Figure(figsize=(inches, 4.6), layout="constrained")
    axes = figure.subplots()
    for i, ((kind, limit, curve), names) in enumerate(_shared(record).items()):
        colour = COLOURS[i % len(COLOURS)]
        label = f"{_list(names)}{' (examples)' if kind == 'example_epsilon' else ''}"
        label += "" if limit is None else f", at most {limit:g}"
        bounded = [(number, value) for number, value in curve if value is not None]
        axes.plot(*zip(*bounded, strict=True) if bounded else ((), ()), marker="o", markersize=3, color=colour,
                  label=label if bounded else f"{label}: no bound")  # fmt: skip
        if limit is not None:
            axes.axhline(limit, color=colour, linestyle="dashed", linewidth=1)
    axes.set_xlabel("round")
    axes.set_ylabel("epsilon")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.suptitle("privacy spent by round; dashed: max_epsilon")
    return figure


Curve = tuple[tuple[int, float | None], ...]


def _shared(record: RunRecord) -> dict[tuple[str, float | None, Curve], list[str]]:
    found: dict[tuple[str, float | None, Curve], list[str]] = {}
    for name, kind, limit in _private(record):
        curve = tuple(
            (one["round"] + 1, one["nodes"][name][kind]) for one in record.rounds if kind in one["nodes"].get(name, {})
        )
        if curve:
            found.setdefault((kind, limit, curve), []).append(name)
    return found


def _private(record: RunRecord) -> Iterator[tuple[str, str, float | None]]:
    for node in record.nodes:
        for kind, limit in KINDS.items():
            yield node["name"], kind, node.get(limit)


def _list(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])} and {len(names) - 5:,} more"
