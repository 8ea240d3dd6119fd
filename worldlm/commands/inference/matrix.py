"""The perplexity of every node's model on every text, as a table, as files and as a picture."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text as Styled

from worldlm.models import Evaluation
from worldlm.runs.scores import score_text

_MAX_LABELLED = 60
"""Most nodes whose names and numbers are drawn."""
_INCHES_A_COLUMN, _INCHES_A_ROW = 1.5, 0.42


@dataclass(frozen=True, slots=True)
class Cell:
    """The result of a node's model on a text."""

    evaluation: Evaluation
    """Its loss."""
    bytes_per_token: float
    """Bytes per token of the text."""

    @property
    def perplexity(self) -> float:
        """Perplexity per token."""
        return self.evaluation.perplexity

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte, comparable between tokenizers and texts."""
        return self.evaluation.bits_per_byte(self.bytes_per_token)


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """The results of some nodes' models on some texts."""

    title: str
    """The run and its round."""
    cells: Mapping[str, Mapping[str, Cell]]
    """The results, by node and text."""
    own: Mapping[str, str | None]
    """Each node's own corpus."""
    depths: Mapping[str, int]
    """The number of levels above each node."""
    sizes: Mapping[str, int]
    """The number of tokens of each whole text, of which all or some are evaluated."""

    @property
    def texts(self) -> list[str]:
        """The texts, in the order of the columns."""
        return list(next(iter(self.cells.values())))

    def best(self, text: str) -> str:
        """Return the node whose model has the lowest loss on a text."""
        return min(self.cells, key=lambda node: self.cells[node][text].evaluation.nats)

    def mean_bits(self, node: str) -> float:
        """Return a node's mean bits per byte over all texts."""
        return math.fsum(cell.bits_per_byte for cell in self.cells[node].values()) / len(self.texts)


def draw_table(matrix: Matrix) -> Table:
    """Return the table for a terminal. The best model on each text is bold, and a node's own corpus has a star."""
    table = Table("node", title=matrix.title)
    for text in matrix.texts:
        table.add_column(text, justify="right")
    means = {node: matrix.mean_bits(node) for node in matrix.cells}
    if several := len(matrix.texts) > 1:
        table.add_column("mean bits", justify="right")
    for node, cells in matrix.cells.items():
        shown = [
            Styled(_text(cell) + _star(matrix, node, text), style="bold" if matrix.best(text) == node else "")
            for text, cell in cells.items()
        ]
        mean = [Styled(f"{means[node]:.3f}", style="bold" if means[node] == min(means.values()) else "")]
        table.add_row("  " * matrix.depths[node] + node, *shown, *(mean if several else ()))
    return table


def _text(cell: Cell) -> str:
    return f"{score_text(cell.perplexity)} ({cell.bits_per_byte:.3f})"


def _star(matrix: Matrix, node: str, text: str) -> str:
    starred = any(corpus is not None and corpus in matrix.texts for corpus in matrix.own.values())
    return ("*" if matrix.own[node] == text else " ") if starred else ""


def as_json(matrix: Matrix, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a JSON file. Figures that are not finite are null.

    Args:
        matrix: The matrix.
        facts: The first entries.
    """
    nodes = [
        {
            "node": node,
            "corpus": matrix.own[node],
            "scores": {
                text: {
                    "perplexity": _finite(cell.perplexity),
                    "bits_per_byte": _finite(cell.bits_per_byte),
                    "tokens": cell.evaluation.num_tokens,
                }
                for text, cell in cells.items()
            },
        }
        for node, cells in matrix.cells.items()
    ]
    return {**facts, "nodes": nodes}


def as_csv(matrix: Matrix) -> str:
    """Return the matrix as CSV, with a line for every node and text."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["node", "corpus", "perplexity", "bits_per_byte", "tokens"])
    for node, cells in matrix.cells.items():
        for text, cell in cells.items():
            writer.writerow([node, text, cell.perplexity, cell.bits_per_byte, cell.evaluation.num_tokens])
    return stream.getvalue()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def heatmap(matrix: Matrix) -> Figure:
    """Draw perplexities, coloured by the difference in bits per byte to the best model on the same text.

    The best model on each text is bold, and a node's own corpus has a frame. Of many nodes, only the colours are drawn.
    """
    nodes, texts = list(matrix.cells), matrix.texts
    bits = [[matrix.cells[node][text].bits_per_byte for text in texts] for node in nodes]
    lows = [min(column) for column in zip(*bits, strict=True)]
    grid = [[value - low for value, low in zip(row, lows, strict=True)] for row in bits]
    labelled = nodes if len(nodes) <= _MAX_LABELLED else []
    height = _INCHES_A_ROW * min(len(nodes), _MAX_LABELLED)
    figure = Figure(figsize=(3.5 + _INCHES_A_COLUMN * len(texts), 1.6 + height), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(grid, aspect="auto", cmap="cividis_r", vmin=0, vmax=_range(grid), interpolation="nearest")
    axes.set_xticks(range(len(texts)), texts, rotation=0 if len(texts) < 6 else 30)
    axes.set_yticks(range(len(labelled)), [f"{'   ' * matrix.depths[node]}{node}" for node in labelled])
    axes.set_xlabel("held-out text of")
    axes.set_ylabel("model of")
    for row, node in enumerate(labelled):
        for column, text in enumerate(texts):
            colour = "white" if grid[row][column] > _range(grid) / 2 else "black"
            weight = "bold" if matrix.best(text) == node else "normal"
            label = score_text(matrix.cells[node][text].perplexity)
            axes.text(column, row, label, ha="center", va="center", color=colour, weight=weight)
            if matrix.own[node] == text:
                axes.add_patch(_frame(column, row))
    figure.colorbar(image, ax=axes, label="bits per byte above the best")
    figure.suptitle(
        f"{matrix.title}: perplexity per token; bold: the best model on a text; framed: a node's own corpus"
    )
    return figure


def _frame(column: int, row: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, fill=False, edgecolor="#d55e00", linewidth=1.6)


def _range(grid: Sequence[Sequence[float]]) -> float:
    """Return the value of the darkest colour: the largest finite difference, above 0."""
    return max((value for row in grid for value in row if math.isfinite(value)), default=0.0) or 1e-9


def best_lines(matrix: Matrix) -> Iterable[str]:
    """Yield a line about each text: the best model, and how much of the text was evaluated."""
    for text in matrix.texts:
        node = matrix.best(text)
        cell, size = matrix.cells[node][text], matrix.sizes[text]
        tokens = cell.evaluation.num_tokens
        measured = f"all {tokens:,} tokens" if tokens == size else f"{tokens:,} of {size:,} tokens"
        yield f"{text}: measured on {measured}; best model is {node}, {_text(cell)}"
