"""Who knows what, as numbers, a table and a picture."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from worldlm.commands.inference.evaluate import _precision
from worldlm.commands.inference.matrix import Cell, Matrix, as_csv, as_json, best_lines, draw_table, heatmap
from worldlm.models import Evaluation
from worldlm.plots.style import save


def cell(bits: float, bytes_per_token: float = 2.0) -> Cell:
    return Cell(Evaluation(nats=bits * math.log(2) * bytes_per_token, num_tokens=10), bytes_per_token)


MATRIX = Matrix(
    title="pair after 2 rounds",
    cells={
        "world": {"sea": cell(3.0), "sky": cell(2.0)},
        "a": {"sea": cell(1.0), "sky": cell(math.inf)},
        "b": {"sea": cell(1.5), "sky": cell(2.5)},
    },
    own={"world": None, "a": "sea", "b": "sky"},
    depths={"world": 0, "a": 1, "b": 1},
    sizes={"sea": 10, "sky": 5000},
)


def test_the_best_on_a_text_and_means_in_bits() -> None:
    assert [MATRIX.best(text) for text in MATRIX.texts] == ["a", "world"]
    assert MATRIX.mean_bits("b") == pytest.approx(2.0)
    assert MATRIX.cells["a"]["sea"].perplexity == pytest.approx(4.0)
    assert MATRIX.cells["a"]["sea"].bits_per_byte == pytest.approx(1.0)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16", "16-mixed", 16, "32-true", None])
def test_models_are_evaluated_in_the_precision_of_their_run(precision: str | int | None) -> None:
    """Lightning's short names mean mixed precision, too."""
    run: Any = SimpleNamespace(config={"trainer": {"precision": precision}})
    mixed = isinstance(_precision(run, torch.device("cpu")), torch.autocast)
    assert mixed == ("16" in str(precision))


def test_a_line_on_each_text_states_how_much_was_measured() -> None:
    assert list(best_lines(MATRIX)) == [
        "sea: measured on all 10 tokens; best model is a, 4.00 (1.000)",
        "sky: measured on 10 of 5,000 tokens; best model is world, 16.00 (2.000)",
    ]


def test_the_table_marks_a_nodes_own_corpus() -> None:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(draw_table(MATRIX))
    lines = [line for line in capture.get().splitlines() if line.startswith("│")]
    assert [[part.strip() for part in line.strip("│").split("│")] for line in lines] == [
        ["world", "64.00 (3.000)", "16.00 (2.000)", "2.500"],
        ["a", "4.00 (1.000)*", "inf (inf)", "inf"],
        ["b", "8.00 (1.500)", "32.00 (2.500)*", "2.000"],
    ]
    assert lines[1].startswith("│   a ")


def test_files_are_strict_and_whole() -> None:
    content = json.loads(json.dumps(as_json(MATRIX, {"format": 1}), allow_nan=False))
    assert content["nodes"][1] == {
        "node": "a",
        "corpus": "sea",
        "scores": {
            "sea": {"perplexity": pytest.approx(4.0), "bits_per_byte": pytest.approx(1.0), "tokens": 10},
            "sky": {"perplexity": None, "bits_per_byte": None, "tokens": 10},
        },
    }
    lines = as_csv(MATRIX).splitlines()
    assert (len(lines), lines[0]) == (7, "node,corpus,perplexity,bits_per_byte,tokens")


@pytest.mark.parametrize("number", [1, 3, 200])
def test_a_picture_of_any_number_of_nodes(number: int, tmp_path: Path) -> None:
    nodes = [f"n{i}" for i in range(number)]
    matrix = Matrix(
        title="many",
        cells={
            node: {"sea": cell(1.0 + i / number), "sky": cell(math.inf if i == 1 else 2.0)}
            for i, node in enumerate(nodes)
        },
        own=dict.fromkeys(nodes, "sea"),
        depths=dict.fromkeys(nodes, 0),
        sizes={"sea": 10, "sky": 10},
    )
    figure = heatmap(matrix)
    axes = figure.axes[0]
    texts = [(label.get_text(), label.get_fontweight()) for label in axes.texts]
    if number <= 60:
        assert len(texts) == 2 * number
        assert texts[0] == ("4.00", "bold")
    else:
        assert texts == []
    save(figure, tmp_path / "matrix")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["matrix.png", "matrix.svg"]
