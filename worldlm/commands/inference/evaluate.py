"""`worldlm evaluate`: evaluates any node's model on any corpus."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from worldlm.cli.console import table_console
from worldlm.cli.parser import Parser, names, whole_number
from worldlm.commands.inference.errors import file_errors
from worldlm.commands.inference.matrix import Cell, Matrix, as_csv, as_json, best_lines, draw_table, heatmap
from worldlm.commands.inference.saved_run import SavedRun, open_run
from worldlm.commands.inference.texts import Text, find_texts
from worldlm.files.atomic_write import write_text
from worldlm.monitoring.record import write_json
from worldlm.plots.style import save
from worldlm.topology.errors import UserError
from worldlm.trainer.options import default_precision

FORMAT = 1
"""Version of matrix.json, raised when the meaning of its content changes."""


def evaluate(arguments: Sequence[str]) -> int:
    """Evaluate models of a run, print a table, and write it with a picture into the run's folder.

    Args:
        arguments: The words after `worldlm evaluate`.

    Returns:
        The exit status, 0.

    Raises:
        UserError: For mistakes that the user can correct, one line each.
    """
    options = _parser().parse_args(arguments)
    changes = {name: value for name in ("root", "cache_dir") if (value := getattr(options, name)) is not None}
    with file_errors():
        run = open_run(options.run, options.round, options.trust, options.base)
        nodes = run.choose(options.node or run.names)
        texts = find_texts(
            run, options.corpus, split=options.split, limit=options.limit, recipes=options.recipe, changes=changes
        )
        if repeated := [name for name, count in Counter(text.name for text in texts).items() if count > 1]:
            raise UserError([f"two texts are called {repeated[0]!r}: evaluate them one after the other"])
        matrix = measure(run, nodes, texts)
    for text in texts:
        if text.is_other:
            reason = "its files, its settings or the tokenizer changed since the run, so its figures may differ"
            print(f"worldlm: warning: {text.name}: {reason}", file=sys.stderr)
    folder = Path(os.path.expanduser(options.out)) if options.out else run.folder / "evaluation"
    name = "matrix" if options.round is None else f"matrix_round_{options.round}"
    report(matrix)
    with file_errors():
        write(matrix, folder / name, _facts(run, texts, options.split))
    print(f"done. table and picture: {folder / name}.json, .csv, .png, .svg")
    return 0


def measure(run: SavedRun, nodes: Sequence[str], texts: Sequence[Text]) -> Matrix:
    """Evaluate models on texts, in the batches and the precision of their run.

    Args:
        run: The run.
        nodes: The nodes whose models are evaluated.
        texts: The texts.
    """
    module, cells = run.module(), dict[str, dict[str, Cell]]()
    console = Console(stderr=True)
    if not console.is_terminal:
        numbers = [
            f"{number} {word}{'s' * (number != 1)}" for number, word in ((len(nodes), "model"), (len(texts), "text"))
        ]
        print(f"worldlm: evaluating {' on '.join(numbers)}", file=sys.stderr)
    for node in track(nodes, "evaluating", console=console, transient=True, disable=not console.is_terminal):
        run.put(module, node)
        with _precision(run, module.device):
            cells[node] = {
                text.name: Cell(module.evaluate(text.batches()), text.blocks.bytes_per_token) for text in texts
            }
    corpora = {node["name"]: node["corpus"] for node in run.record.nodes} if run.record else {}
    return Matrix(
        title=run.title,
        cells=cells,
        own={node: corpora.get(node) for node in nodes},
        depths={node: run.depth(node) for node in nodes},
        sizes={text.name: text.num_tokens for text in texts},
    )


def _precision(run: SavedRun, device: torch.device) -> Any:
    """Return a context that computes in the precision of the run's own evaluation."""
    precision = str((run.config.get("trainer") or {}).get("precision") or default_precision(device.type))
    types = {"bf16-mixed": torch.bfloat16, "bf16": torch.bfloat16, "16-mixed": torch.float16, "16": torch.float16}
    return torch.autocast(device.type, types[precision]) if precision in types else nullcontext()


def _facts(run: SavedRun, texts: Sequence[Text], split: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "rounds": run.world.num_rounds,
        "within_round": run.world.within_round,
        "split": split,
        "texts": {
            text.name: {"blocks": len(text.blocks), "batches": text.num_batches, "batch_size": text.batch_size}
            for text in texts
        },
    }


def write(matrix: Matrix, path: Path, facts: dict[str, Any]) -> None:
    """Write a matrix as JSON, CSV, PNG and SVG.

    Args:
        matrix: The matrix.
        path: The files' path, without a suffix.
        facts: The first entries of the JSON.
    """
    write_json(path.with_name(f"{path.name}.json"), as_json(matrix, facts))
    write_text(path.with_name(f"{path.name}.csv"), as_csv(matrix))
    save(heatmap(matrix), path)


def report(matrix: Matrix) -> None:
    """Print a matrix, and the best model on each text."""
    console = table_console(40 + 24 * len(matrix.texts))
    console.print(draw_table(matrix))
    for line in best_lines(matrix):
        console.print(line, markup=False, soft_wrap=True)
    console.print(
        "perplexity per token (bits per byte); bold: the best model on this text; *: the node's own corpus",
        soft_wrap=True,
    )


def _parser() -> Parser:
    parser = Parser("worldlm evaluate", "Evaluate any node's model on any corpus.")
    parser.add_run()
    parser.add_argument("--node", type=names, metavar="A,B", help="nodes whose models to evaluate; by default all")
    parser.add_argument(
        "--corpus",
        type=names,
        metavar="C,D",
        help="corpora of the run, or whole files (.txt, .json, .jsonl, .parquet); by default the corpora of the run's "
        "nodes",
    )
    parser.add_argument("--split", choices=("validation", "train"), default="validation", help="default: validation")
    parser.add_argument(
        "--limit",
        type=whole_number(1),
        metavar="N",
        help="batches of each text; default: those that the run evaluated of its nodes' corpora, all of other texts",
    )
    parser.add_argument("--recipe", action="append", default=[], help="a recipe whose corpora may also be named")
    parser.add_argument("--root", metavar="FOLDER", help="folder of the run's relative paths (data.root)")
    parser.add_argument("--cache_dir", metavar="FOLDER", help="folder of packed text; default: the run's")
    parser.add_argument("--out", metavar="FOLDER", help="folder to write; default: evaluation in the run's folder")
    return parser
