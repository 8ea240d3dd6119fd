"""A world of two nodes with short texts, for the commands."""

from __future__ import annotations

import json
from pathlib import Path

PAIR_TREE = """
name: pair
settings: {num_local_steps: 4}
root:
  name: world
  children: [{name: a, corpus: a}, {name: b, corpus: b}]
"""

PAIR_DATA = """
data:
  tokenizer: bytes
  batch_size: 4
  cache_dir: cache
  corpora:
    a: {class_path: worldlm.data.TextFiles, init_args: {train: a.jsonl}}
    b: {class_path: worldlm.data.TextFiles, init_args: {train: b.jsonl}}
trainer: {max_epochs: 2, limit_val_batches: 1}
"""
"""The end of a recipe, with the data of both nodes."""


def write_pair(folder: Path) -> None:
    """Write `tree.yaml`, and the texts `a.jsonl` and `b.jsonl`."""
    for name, text in (("a", "the sea came in and the sea went out. "), ("b", "il mare va e viene. ")):
        lines = [json.dumps({"text": f"{text * 8}{i}"}) for i in range(300)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    (folder / "tree.yaml").write_text(PAIR_TREE)
