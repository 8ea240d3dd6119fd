"""Who knows what: models by texts, as a table, as files and as a picture."""

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

_MANY_ROWS = 60
_INCHES_A_COLUMN, _INCHES_A_ROW = 1.5, 0.42


@dataclass(frozen=True, slots=True)
class Cell:
    """A node's model on a text."""

    evaluation: Evaluation
    """What the model makes of it."""
    bytes_per_token: float
    """Of the text."""

    @property
    def perplexity(self) -> float:
        """Per token."""
        return self.evaluation.perplexity

    @property
    def bits_per_byte(self) -> float:
        """Which compares across tokenizers, and across texts."""
        return self.evaluation.bits_per_byte(self.bytes_per_token)


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Models of some nodes on some texts."""

    title: str
    """Of which run, and when."""
    cells: Mapping[str, Mapping[str, Cell]]
    """By node and text."""
    own: Mapping[str, str | None]
    """The corpus that a node has, by node."""
    depths: Mapping[str, int]
    """Levels above a node."""

    @property
    def texts(self) -> list[str]:
        """The texts, in the order of the columns."""
        return list(next(iter(self.cells.values())))

    def best(self, text: str) -> str:
        """Return the node whose model knows a text best."""
        return min(self.cells, key=lambda node: self.cells[node][text].evaluation.nats)

    def mean_bits(self, node: str) -> float:
        """Return a node's bits per byte, mean over all texts."""
        return math.fsum(cell.bits_per_byte for cell in self.cells[node].values()) / len(self.texts)


def draw_table(matrix: Matrix) -> Table:
    """Lay the matrix out for a terminal: the best on every text bold, a node's own corpus with a star."""
    table = Table("node", title=matrix.title)
    for text in matrix.texts:
        table.add_column(text, justify="right")
    means = {node: matrix.mean_bits(node) for node in matrix.cells}
    if several := len(matrix.texts) > 1:
        table.add_column("mean bits", justify="right")
    for node, cells in matrix.cells.items():
        shown = [
            Styled(_told(cell) + _star(matrix, node, text), style="bold" if matrix.best(text) == node else "")
            for text, cell in cells.items()
        ]
        mean = [Styled(f"{means[node]:.3f}", style="bold" if means[node] == min(means.values()) else "")]
        table.add_row("  " * matrix.depths[node] + node, *shown, *(mean if several else ()))
    return table


def _told(cell: Cell) -> str:
    return f"{cell.perplexity:.2f} ({cell.bits_per_byte:.3f})"


def _star(matrix: Matrix, node: str, text: str) -> str:
    starred = any(one is not None and one in matrix.texts for one in matrix.own.values())
    return ("*" if matrix.own[node] == text else " ") if starred else ""


def as_json(matrix: Matrix, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return strict JSON, a node to a line; figures that are no finite number are null.

    Args:
        matrix: The matrix.
        facts: What to say of it first.
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
    """Return a line for every node and text."""
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
    """Draw perplexities, coloured by how many bits per byte more a model needs than the best one on the same text.

    The best on every text is bold, a node's own corpus framed. Of many nodes the colours alone are drawn.
    """
    nodes, texts = list(matrix.cells), matrix.texts
    bits = [[matrix.cells[node][text].bits_per_byte for text in texts] for node in nodes]
    lows = [min(column) for column in zip(*bits, strict=True)]
    grid = [[value - low for value, low in zip(row, lows, strict=True)] for row in bits]
    few = len(nodes) <= _MANY_ROWS
    height = _INCHES_A_ROW * min(len(nodes), _MANY_ROWS)
    figure = Figure(figsize=(3.5 + _INCHES_A_COLUMN * len(texts), 1.6 + height), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(grid, aspect="auto", cmap="cividis_r", vmin=0, vmax=_reach(grid), interpolation="nearest")
    axes.set_xticks(range(len(texts)), texts, rotation=0 if len(texts) < 6 else 30)
    axes.set_yticks(range(len(nodes)) if few else (), [f"{'   ' * matrix.depths[one]}{one}" for one in nodes if few])
    axes.set_xlabel("held-out text of")
    axes.set_ylabel("model of")
    for row, node in enumerate(nodes if few else ()):
        for column, text in enumerate(texts):
            dark = grid[row][column] > _reach(grid) / 2
            is_best = matrix.best(text) == node
            told, weight = f"{matrix.cells[node][text].perplexity:.2f}", "bold" if is_best else "normal"
            colour = "white" if dark else "black"
            axes.text(column, row, told, ha="center", va="center", color=colour, weight=weight)
            if matrix.own[node] == text:
                axes.add_patch(_frame(column, row))
    figure.colorbar(image, ax=axes, label="bits per byte above the best")
    figure.suptitle(f"{matrix.title}: perplexity per token; bold: the best on a text; framed: its own corpus")
    return figure


def _frame(column: int, row: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, fill=False, edgecolor="#d55e00", linewidth=1.6)


def _reach(grid: Sequence[Sequence[float]]) -> float:
    """Return what the darkest colour stands for: the largest finite distance, at least something."""
    return max((value for row in grid for value in row if math.isfinite(value)), default=0.0) or 1e-9


def best_of(matrix: Matrix) -> Iterable[str]:
    """Say of every text whose model knows it best, a line each."""
    for text in matrix.texts:
        node = matrix.best(text)
        yield f"{text}: {node} knows it best, {_told(matrix.cells[node][text])}"
