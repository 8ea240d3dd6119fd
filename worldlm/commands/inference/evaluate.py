"""`worldlm evaluate`: any node's model on any corpus."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from worldlm.cli.parser import Parser, names
from worldlm.commands.inference.arguments import line_by_line, parse, run_parser, whole
from worldlm.commands.inference.matrix import Cell, Matrix, as_csv, as_json, best_of, draw_table, heatmap
from worldlm.commands.inference.saved_run import SavedRun, open_run
from worldlm.commands.inference.texts import Text, find_texts
from worldlm.files.atomic_write import write_text
from worldlm.monitoring.record import write_json
from worldlm.plots.style import save
from worldlm.topology.errors import UserError
from worldlm.trainer.world_trainer import default_precision

FORMAT = 1
"""Counted up whenever matrix.json changes its meaning."""


def evaluate(given: Sequence[str]) -> int:
    """Measure models of a run, print a table, and write it with a picture into the run's folder.

    Args:
        given: What stands after `worldlm evaluate`.

    Returns:
        The exit status, 0.

    Raises:
        UserError: What a user can put right, one line each.
    """
    options = parse(_parser(), given)
    if options is None:
        return 0
    changes = {name: value for name in ("root", "cache_dir") if (value := getattr(options, name)) is not None}
    with line_by_line():
        run = open_run(options.run, options.round, options.trust)
        nodes = run.choose(options.node or run.names)
        texts = find_texts(
            run, options.corpus, split=options.split, limit=options.limit, recipes=options.recipe, changes=changes
        )
        if twice := [one.name for one in texts if [other.name for other in texts].count(one.name) > 1]:
            raise UserError([f"two texts are called {twice[0]!r}: measure them one after the other"])
        matrix = measure(run, nodes, texts)
    for text in texts:
        if text.is_other:
            told = "its files, its settings or the tokenizer changed since the run, so that its figures may differ"
            print(f"worldlm: warning: {text.name}: {told}", file=sys.stderr)
    folder = Path(options.out).expanduser() if options.out else run.folder / "evaluation"
    name = "matrix" if options.round is None else f"matrix_round_{options.round}"
    report(matrix)
    with line_by_line():
        write(matrix, folder / name, _facts(run, texts, options.split))
    print(f"done. table and picture: {folder / name}.json, .csv, .png, .svg")
    return 0


def measure(run: SavedRun, nodes: Sequence[str], texts: Sequence[Text]) -> Matrix:
    """Evaluate models on texts, each as its run would have.

    Args:
        run: The run.
        nodes: Whose models.
        texts: What they are measured on.
    """
    module, cells = run.module(), dict[str, dict[str, Cell]]()
    console = Console(stderr=True)
    for node in track(nodes, "evaluating", console=console, transient=True, disable=not console.is_terminal):
        run.put(module, node)
        with _precision(run, module.device):
            cells[node] = {
                text.name: Cell(module.evaluate(text.batches()), text.blocks.bytes_per_token) for text in texts
            }
    recorded = {one["name"]: one["corpus"] for one in run.record.nodes} if run.record else {}
    return Matrix(
        title=run.title,
        cells=cells,
        own={node: recorded.get(node) for node in nodes},
        depths={node: run.depth(node) for node in nodes},
    )


def _precision(run: SavedRun, device: torch.device) -> Any:
    """Compute in the precision that the run was evaluated in."""
    chosen = str((run.config.get("trainer") or {}).get("precision") or default_precision(device.type))
    kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return torch.autocast(device.type, kinds[chosen]) if chosen in kinds else nullcontext()


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
        path: Where to, without a suffix.
        facts: What the JSON says first.
    """
    write_json(path.with_name(f"{path.name}.json"), as_json(matrix, facts))
    write_text(path.with_name(f"{path.name}.csv"), as_csv(matrix))
    save(heatmap(matrix), path)


def report(matrix: Matrix) -> None:
    """Print a matrix and what it says."""
    console = Console(highlight=False)
    if not console.is_terminal:  # a file has no edge to wrap at
        console.width = 40 + 24 * len(matrix.texts)
    console.print(draw_table(matrix))
    for line in best_of(matrix):
        console.print(line, markup=False, soft_wrap=True)
    console.print(
        "perplexity per token (bits per byte); bold: the best on this text; *: the node's own corpus", soft_wrap=True
    )


def _parser() -> Parser:
    parser = run_parser("evaluate", "Measure any node's model on any corpus: who knows what.")
    parser.add_argument("--node", type=names, metavar="A,B", help="whose models; by default all nodes'")
    parser.add_argument(
        "--corpus",
        type=names,
        metavar="C,D",
        help="corpora of the run, or files (.txt, .json, .jsonl, .parquet), which are measured whole; by default the "
        "corpora of the run's nodes",
    )
    parser.add_argument("--split", choices=("validation", "train"), default="validation", help="default: validation")
    parser.add_argument("--limit", type=whole(1), metavar="N", help="batches of each text; default: as the run had")
    parser.add_argument("--recipe", action="append", default=[], help="a recipe whose corpora may be named too")
    parser.add_argument("--root", metavar="FOLDER", help="where the run's relative paths start now (data.root)")
    parser.add_argument("--cache_dir", metavar="FOLDER", help="folder of packed text; default: the run's")
    parser.add_argument("--out", metavar="FOLDER", help="where to write; default: evaluation in the run's folder")
    return parser
