"""Preparing equals a plain loop over the records, for any text, limits, batches and interruptions."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from worldlm.data import ByteTokenizer, Request, TextFiles, prepare

KINDS = ("a", "b")
LIMITS = ("max_documents", "max_tokens", "max_validation_documents")

records = st.lists(st.tuples(st.sampled_from(KINDS), st.text("xyzé ", max_size=12)), min_size=30, max_size=60)
limits = st.dictionaries(st.sampled_from(LIMITS), st.integers(3, 60), max_size=2)


def _plain(
    records: list[tuple[str, str]], kind: str, held_out: set[str], limits: dict[str, int]
) -> dict[str, list[int]]:
    """Return the tokens of both splits."""
    tokens: dict[str, list[int]] = {"train": [], "validation": []}
    counts = {"train": 0, "validation": 0}
    for record_kind, text in records:
        if record_kind != kind or not text.strip():
            continue
        split = "validation" if text in held_out else "train"
        if split == "validation" and counts[split] == limits.get("max_validation_documents"):
            continue
        tokens[split] += [*text.encode(), 256]
        counts[split] += 1
        if counts["train"] == limits.get("max_documents") or len(tokens["train"]) >= limits.get("max_tokens", 10**9):
            break
    return tokens


class Interrupted(ByteTokenizer):
    """A byte tokenizer that fails at a batch."""

    def __init__(self, batch: int) -> None:
        self.left = batch

    def encode_batch(self, texts: list[str]) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().encode_batch(texts)


@settings(max_examples=25)
@given(
    records=records,
    limits=limits,
    batch=st.integers(1, 40),
    fraction=st.sampled_from([0.2, 0.5]),
    stops=st.lists(st.integers(1, 8), max_size=3),
)
def test_preparing_equals_a_plain_loop(
    records: list[tuple[str, str]], limits: dict[str, int], batch: int, fraction: float, stops: list[int]
) -> None:
    with TemporaryDirectory() as name:
        file, cache = Path(name) / "records.jsonl", Path(name) / "cache"
        file.write_text("".join(json.dumps({"kind": kind, "text": text}) + "\n" for kind, text in records))
        held_out = set(TextFiles(train=str(file), validation_fraction=fraction).documents("validation"))
        expected, requests = {}, []
        for kind in KINDS:
            tokens = _plain(records, kind, held_out, limits)
            if all(tokens.values()):  # corpora with an empty split are rejected
                expected[kind] = tokens
                corpus = TextFiles(train=str(file), where={"kind": kind}, validation_fraction=fraction, **limits)  # type: ignore[arg-type]
                requests.append(Request(kind, corpus, kind))
        with (
            patch("worldlm.data.gathering._BATCH_CHARACTERS", batch),
            patch("worldlm.data.preparing._SECONDS_BETWEEN_SAVES", 0),
        ):
            for stop in stops:
                try:
                    prepare(requests, Interrupted(stop), cache)
                except KeyboardInterrupt:
                    continue
            packed = prepare(requests, ByteTokenizer(), cache)
        assert {
            kind: {split: part.tokens.tolist() for split, part in splits.items()} for kind, splits in packed.items()
        } == expected
