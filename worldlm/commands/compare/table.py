"""The table of a comparison: one row for each method, over its seeds."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from worldlm.commands.compare.checks import all_tokens
from worldlm.commands.compare.records import by_method, common_nodes
from worldlm.runs.results import MOMENTS, Moment, RunRecord
from worldlm.runs.scores import score_text, scored
from worldlm.topology.errors import join_names


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation of a figure over seeds."""

    mean: float
    """Arithmetic mean."""
    deviation: float | None = None
    """Sample standard deviation (n - 1); None for a single seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRow:
    """A method's row."""

    method: str
    """The method's name."""
    num_seeds: int
    """The number of runs."""
    figures: dict[str, Spread | None]
    """Figures by the names of their columns, or None. after_merge, after_fit and their bits per byte are means over
    the data nodes that have them; best after_fit is the mean over the nodes' best rounds; `NODE after_merge` is the
    figure of one node."""


_FORMATS = {"tokens": "{:,.0f}", "MB moved": "{:,.1f}", "epsilon": "{:.2f}", "seconds": "{:,.0f}"}
_BITS = "bits per byte"
_LEGEND = (
    "Perplexity per token on held-out text, mean over the data nodes, ± standard deviation over seeds. best after_fit",
    "takes each node at its best round. Columns of nodes are after_merge / after_fit. Tokens of all nodes, MB over all",
    "edges both ways, the largest epsilon, wall seconds.",
)


def spread(values: Iterable[float | None]) -> Spread | None:
    """Return mean and standard deviation; None if there is no value, or a value is missing."""
    known = list(values)
    if not known or None in known:
        return None
    numbers = [float(value) for value in known if value is not None]
    if len(numbers) == 1:
        return Spread(numbers[0])
    finite = all(map(math.isfinite, numbers))
    return Spread(statistics.fmean(numbers), statistics.stdev(numbers) if finite else None)


def rows(records: Sequence[RunRecord]) -> list[MethodRow]:
    """Compute the table over the data nodes that all runs have.

    Args:
        records: Finished runs, in the order of their methods.

    Returns:
        A row for each method. Epsilon is the largest over nodes and seeds; all other figures are means over seeds.
    """
    nodes = common_nodes(records)
    having = {moment: scored(records, nodes, moment) for moment in MOMENTS}
    return [_row(method, group, nodes, having) for method, group in by_method(records).items()]


def legend(records: Sequence[RunRecord]) -> list[str]:
    """Return the legend of the table. It states which means leave out nodes without the score."""
    nodes, lines = common_nodes(records), list(_LEGEND)
    for moment in MOMENTS:
        found = scored(records, nodes, moment)
        if 0 < len(found) < len(nodes):
            others = join_names(name for name in nodes if name not in found)
            lines.append(f"Means of {moment} are over {len(found)} of {len(nodes)} data nodes: not {others}.")
    return lines


def _row(
    method: str, group: Sequence[RunRecord], nodes: Sequence[str], having: Mapping[Moment, Sequence[str]]
) -> MethodRow:
    figures: dict[str, Spread | None] = {}
    for moment, names in having.items():
        figures[moment] = spread(_over_nodes(record, names, moment, "perplexity") for record in group)
    for moment, names in having.items():
        figures[f"{moment} {_BITS}"] = spread(_over_nodes(record, names, moment, "bits_per_byte") for record in group)
    bests = (_mean(record.best(node, "after_fit") for node in having["after_fit"]) for record in group)
    figures["best after_fit"] = spread(bests)
    for node in nodes:
        for moment in MOMENTS:
            figures[f"{node} {moment}"] = spread(record.last(node, moment) for record in group)
    epsilons = [epsilon for record in group if (epsilon := record.epsilon) is not None]
    figures |= {
        "tokens": spread(all_tokens(record) for record in group),
        "MB moved": spread(list(record.megabytes().values())[-1] for record in group),
        "epsilon": Spread(max(epsilons)) if epsilons else None,
        "seconds": spread(float(record.content["seconds"]) for record in group),
    }
    return MethodRow(method=method, num_seeds=len(group), figures=figures)


def _over_nodes(record: RunRecord, nodes: Sequence[str], moment: Moment, measure: str) -> float | None:
    return _mean(record.last(node, moment, measure) for node in nodes)


def _mean(values: Iterable[float | None]) -> float | None:
    found = spread(values)
    return None if found is None else found.mean


# ---------------------------------------------------------------------- as text


def cells(table: Sequence[MethodRow]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells. A node's cell has both moments: `after_merge / after_fit`."""
    names = list(table[0].figures)
    shown = [name for name in names if any(row.figures[name] is not None for row in table)]
    nodes = [name.removesuffix(" after_merge") for name in names if name.endswith(" after_merge")]
    plain = [name for name in shown if not any(name == f"{node} {moment}" for node in nodes for moment in MOMENTS)]
    first = [name for name in plain if name not in _FORMATS]
    headings = ["method", "seeds", *first, *nodes, *(name for name in plain if name in _FORMATS)]
    lines = []
    for row in table:
        node_cells = [
            " / ".join(_cell(row.figures[f"{node} {moment}"], "", False) for moment in MOMENTS) for node in nodes
        ]
        lines.append(
            [
                row.method,
                str(row.num_seeds),
                *(_cell(row.figures[name], name) for name in first),
                *node_cells,
                *(_cell(row.figures[name], name, with_deviation=False) for name in plain if name in _FORMATS),
            ]
        )
    return headings, lines


def _cell(figure: Spread | None, name: str, with_deviation: bool = True) -> str:
    if figure is None:
        return "-"
    form = "{:.3f}" if name.endswith(_BITS) else _FORMATS.get(name)
    mean, *deviation = (
        score_text(value) if form is None else form.format(value)
        for value in (figure.mean, figure.deviation)
        if value is not None
    )
    return f"{mean} ± {deviation[0]}" if deviation and with_deviation else mean


def markdown(table: Sequence[MethodRow]) -> str:
    """Return the table in Markdown."""
    headings, lines = cells(table)
    ruler = ["---", *["---:"] * (len(headings) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (headings, ruler, *lines))


def comma_separated(table: Sequence[MethodRow]) -> str:
    """Return all figures in full as CSV, each mean followed by its standard deviation."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = list(table[0].figures)
    writer.writerow(["method", "seeds", *(f"{name}{part}" for name in names for part in ("", " deviation"))])
    for row in table:
        values: list[object] = []
        for name in names:
            figure = row.figures[name]
            values += ["", ""] if figure is None else [figure.mean, figure.deviation]
        writer.writerow([row.method, row.num_seeds, *values])
    return text.getvalue()


def for_terminal(table: Sequence[MethodRow], title: str) -> Table:
    """Return the table for a terminal."""
    headings, lines = cells(table)
    printed = Table(title=title)
    for i, heading in enumerate(headings):
        printed.add_column(heading, justify="right" if i else "left")
    for line in lines:
        printed.add_row(*line)
    return printed
