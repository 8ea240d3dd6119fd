"""A recipe with a partition, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from worldlm.cli.main import main

RECIPE = """\
data:
  cache_dir: cache
  corpora:
    notes:
      class_path: worldlm.data.Partition
      init_args:
        corpus: {class_path: worldlm.data.TextFiles, init_args: {train: notes.jsonl, validation_fraction: 0.3}}
        num_shards: 2
        by: lang
        values: [it, [fr, uk]]
"""
TOPOLOGY = """\
name: copies
settings: {num_local_steps: 1}
root:
  name: world
  children:
    - {name: node, corpus: notes_*, copies: 2}
"""


@pytest.mark.slow
def test_show_prepares_the_shards_of_copies_and_shows_their_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    records = [{"lang": ("it", "fr", "uk")[i % 3], "text": f"{i:03} " + "word " * 40} for i in range(120)]
    Path("notes.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    Path("shards.yaml").write_text(RECIPE)
    Path("copies.yaml").write_text(TOPOLOGY)
    words = ["topology", "show", "copies.yaml", "--recipe", "quickstart", "--recipe", "shards.yaml", "--safe"]
    assert main(words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:4] == [
        "copies",
        "world",
        "├── node_1  corpus notes_1 · 1 steps",
        "└── ...     1 more copies, up to node_2",
    ]
    assert printed[4] == "training tokens of each node:"
    assert [line.split()[:2] for line in printed[5:7]] == [["node_1", "notes_1"], ["node_2", "notes_2"]]
    assert "100%" in printed[9]
    assert "100%" not in printed[10]
    assert printed[8].split() == ["fr", "uk", "it"]
