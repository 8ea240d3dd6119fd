"""Perplexities: as text, their means over nodes, and nodes that ended far worse than they began. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from worldlm.runs.results import MOMENTS, Moment, RunRecord

FAR_WORSE = 2.0
"""A node is far worse than at the start if its perplexity is more than this many times as large."""

_OVERFLOW = 1e300
"""Perplexities above it are shown as infinite. They are recorded as at most exp(700), about 1e304."""


def score_text(value: float) -> str:
    """Format a perplexity, or a mean of perplexities, which may be very large, infinite or NaN."""
    if value < 1e6 or math.isnan(value):
        return f"{value:,.2f}"
    return f"{value:.1e}" if value < _OVERFLOW else "inf"


def mean_text(value: float | None, num_nodes: int, num_all: int) -> str:
    """Format a mean over nodes; it states how many nodes have a value if these are not all."""
    if value is None:
        return ""
    return score_text(value) + (f" ({num_nodes:,} of {num_all:,} nodes)" if num_nodes < num_all else "")


def scored(records: Sequence[RunRecord], nodes: Iterable[str], moment: Moment) -> list[str]:
    """Return the nodes over which means of a score are taken, so that the means of several runs are comparable.

    These are the nodes that have the score in every run in which any node has it. A node that only listens has no
    after_fit.
    """
    names = list(nodes)
    having = [{name for name in names if record.last(name, moment) is not None} for record in records]
    shared = set.intersection(*(found for found in having if found)) if any(having) else set()
    return [name for name in names if name in shared]


def best_mean(record: RunRecord, nodes: Iterable[str], moment: Moment) -> tuple[float | None, int]:
    """Return the lowest mean over nodes of any round, and the number of nodes in it.

    Nodes that never have the score are left out. The mean is None if no round has the scores of all others.
    """
    series = [scores for name in nodes if (scores := record.series(name, moment))]
    rounds = set.intersection(*map(set, series)) if series else ()
    return min((fmean(scores[number] for scores in series) for number in rounds), default=None), len(series)


def is_far_worse(before: float | None, *last: float | None) -> bool:
    """Return whether one of a node's last perplexities is not finite, or far larger than before training.

    Args:
        before: The perplexity of the initial weights; None if it is unknown.
        last: The perplexities after the last round; None for those that were not measured.
    """
    limit = math.inf if before is None else FAR_WORSE * before
    return any(value is not None and not (math.isfinite(value) and value <= limit) for value in last)


def far_worse(record: RunRecord) -> list[str]:
    """Return the names of the nodes that are far worse than at the start, parents first."""
    names: Iterable[Any] = (node["name"] for node in record.nodes)
    return [
        name
        for name in names
        if is_far_worse(record.last(name, "before"), *(record.last(name, moment) for moment in MOMENTS))
    ]


def far_worse_text(names: str) -> str:
    """Return a sentence about nodes that are far worse than at the start."""
    return f"far worse than at the start (perplexity above {FAR_WORSE:g} times that before, or not finite): {names}"


def largest_first(weights: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return attention weights by source, the largest first, ties by name."""
    return sorted(weights.items(), key=lambda item: (-item[1], item[0]))
