"""Two processes train on conversations like one, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from chats import VOCAB_SIZE, chats, write_jsonl, write_tokenizer

from worldlm.callbacks import Averaging, NodeMetrics, TokenRows
from worldlm.data import Conversations, CorpusDataModule
from worldlm.models import Architecture, LanguageModule, OptimizerSettings, Split
from worldlm.storage.pages import fetch

Make = Callable[..., Any]


def test_state_of_a_run(
    star: Make, fit: Make, snapshot: Make, differences: Make, on_ranks: Make, tmp_path: Path
) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    corpora = {}
    for name in "abc":
        file = write_jsonl(tmp_path / f"{name}.jsonl", chats(20, f"{name} {{n}}"))
        corpora[name] = Conversations(train=str(file), validation_fraction=0.3)

    def run() -> Any:
        sizes = Architecture(num_blocks=2, d_model=16, num_heads=2, max_seq_len=64, vocab_size=VOCAB_SIZE)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = LanguageModule(sizes, Split(last_blocks=1), OptimizerSettings(lr=1e-2, warmup_steps=1))
        settings: dict[str, Any] = {"tokenizer": str(tmp_path / "tokenizer"), "cache_dir": str(tmp_path / "cache")}
        data = CorpusDataModule(dict(corpora), batch_size=2, **settings)
        return fetch(snapshot(fit(star("abc"), [TokenRows(), Averaging(), NodeMetrics()], module=module, data=data)))

    alone = run()
    ranks = on_ranks(2, run)
    assert differences(ranks[0]["world"], alone["world"]) == []
