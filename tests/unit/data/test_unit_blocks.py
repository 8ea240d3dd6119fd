"""Blocks for example-level privacy: what belongs to one unit is in no block of another."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from worldlm.data import Blocks, PackedCorpus, TextFiles, UnitBatchSampler, UnitBlocks
from worldlm.data.packed import DOCUMENT
from worldlm.data.preparing import Request, prepare
from worldlm.data.tokenizers import ByteTokenizer
from worldlm.federation.noise_key import NoiseKey
from worldlm.models.padded_loss import mean_of_examples

KEY = NoiseKey(bytes(32))
END = 256


def packed(*documents: str, persons: list[int] | None = None) -> PackedCorpus:
    """Documents of single characters, in memory."""
    tokens = [token for text in documents for token in (*text.encode(), END)]
    table = np.empty(len(documents), DOCUMENT)
    table["end"] = np.cumsum([len(text) + 1 for text in documents])
    table["person"] = persons or 0
    return PackedCorpus(Path("x"), np.array(tokens, np.uint16), len(tokens), len(documents), None, table)


def shown(blocks: UnitBlocks) -> list[str]:
    """Every block; the end of text is a dot, padding a dash."""
    names = {END: ".", -1: "-"}
    return ["".join(names.get(token) or chr(token) for token in block.tolist()) for block in blocks]  # type: ignore[attr-defined]


def test_every_document_is_cut_by_itself() -> None:
    blocks = UnitBlocks([packed("abcdefg", "h", "ijkl")], 3, "document")
    # blocks of four tokens overlap by one; after the first document they begin with the end of the one before
    assert shown(blocks) == ["abcd", "defg", "g.--", ".h.-", ".ijk", "kl.-"]
    assert blocks.unit_starts.tolist() == [0, 3, 4, 6]
    assert blocks.num_units == 3
    assert blocks[1].dtype == torch.int32


def test_all_documents_of_a_person_are_one_unit() -> None:
    parts = [packed("ab", "cd", "ef", persons=[5, 9, 5]), packed("gh", persons=[9])]
    blocks = UnitBlocks(parts, 3, "person")
    assert shown(blocks) == ["ab.-", ".ef.", ".cd.", "gh.-"]
    assert blocks.unit_starts.tolist() == [0, 2, 4]


def test_a_corpus_without_persons_is_rejected() -> None:
    with pytest.raises(ValueError, match="unit is person, but the corpus does not set person"):
        UnitBlocks([packed("ab", "cd", persons=[5, 0])], 3, "person")


@settings(max_examples=60)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(1, 5), st.booleans())
def test_each_token_is_predicted_once_and_within_its_unit(lengths: list[int], seq_len: int, by_person: bool) -> None:
    """Every document has letters of its own."""
    texts = [chr(65 + i) * length for i, length in enumerate(lengths)]
    persons = [1 + i % 2 for i in range(len(texts))]
    blocks = UnitBlocks([packed(*texts, persons=persons)], seq_len, "person" if by_person else "document")
    predicted: list[int] = []
    for unit in range(blocks.num_units):
        letters = set()
        for index in range(*blocks.unit_starts[unit : unit + 2].tolist()):
            tokens = [token for token in blocks[index].tolist() if token != -1]
            predicted += tokens[1:]
            letters |= {token - 65 for token in tokens} - {END - 65}
        assert len(letters) == 1 if not by_person else len({persons[letter] for letter in letters}) == 1
    everything = [token for text in texts for token in (*text.encode(), END)][1:]
    assert sorted(predicted) == sorted(everything)


def test_a_batch_and_a_copy_have_the_same_blocks(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text\n")
    corpus = TextFiles(train=str(tmp_path / "a.txt"), validation=str(tmp_path / "a.txt").replace("a.", "b."))
    (tmp_path / "b.txt").write_text("held out")
    part = prepare([Request("a", corpus, "a")], ByteTokenizer(), tmp_path / "cache")["a"]["train"]
    blocks = UnitBlocks([part], 4, "document")
    batch = blocks.__getitems__([2, 0])
    assert batch.tolist() == [blocks[2].tolist(), blocks[0].tolist()]
    assert shown(pickle.loads(pickle.dumps(blocks))) == shown(blocks)


def test_persons_are_read_from_their_field(tmp_path: Path) -> None:
    records = [{"text": f"text {i}", "by": {"id": i % 2}} for i in range(4)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "v.jsonl").write_text(json.dumps({"text": "v", "by": {"id": 7}}) + "\n")
    files = {"train": str(tmp_path / "t.jsonl"), "validation": str(tmp_path / "v.jsonl")}
    corpora = {person: TextFiles(**files, person=person) for person in (None, "by.id")}
    parts = {
        person: prepare([Request("a", corpus, "a")], ByteTokenizer(), tmp_path / "cache")["a"]["train"]
        for person, corpus in corpora.items()
    }
    assert UnitBlocks([parts["by.id"]], 8, "person").num_units == 2
    assert UnitBlocks([parts["by.id"]], 8, "document").num_units == 4
    with pytest.raises(ValueError, match="does not set person"):
        UnitBlocks([parts[None]], 8, "person")


@pytest.mark.parametrize("value", ['""', "null", "{}", "[1]"])
def test_a_record_without_a_person_names_its_line(tmp_path: Path, value: str) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "a", "by": "x"}\n{"text": "b", "by": ' + value + "}\n")
    corpus = TextFiles(train=str(tmp_path / "t.jsonl"), validation_fraction=0.5, person="by")
    with pytest.raises(ValueError, match=r"t\.jsonl:2: field 'by' is .*, which names no person"):
        prepare([Request("a", corpus, "a")], ByteTokenizer(), tmp_path / "cache")


# ---------------------------------------------------------------------- disjoint blocks


def test_disjoint_blocks_share_no_token() -> None:
    part = packed("abcdefghijk")
    assert [block.tolist() for block in Blocks(part, 3, disjoint=True)] == [  # type: ignore[attr-defined]
        [97, 98, 99, 100],
        [101, 102, 103, 104],
        [105, 106, 107, END],
    ]
    assert len(Blocks(part, 3)) == 3
    assert Blocks(part, 3)[1].tolist() == [100, 101, 102, 103]


# ---------------------------------------------------------------------- sampling and loss


def test_a_drawn_unit_contributes_one_of_its_blocks() -> None:
    starts = np.array([0, 1, 101, 103])
    sampler = UnitBatchSampler("document", starts, 1, KEY, "a")
    sampler.length = 6000
    assert sampler.sample_rate == 1 / 3
    counts = np.zeros(103, int)
    for batch in sampler:
        units = np.searchsorted(starts, batch, side="right") - 1
        assert len(set(units.tolist())) == len(batch)
        counts[batch] += 1
    drawn = np.add.reduceat(counts, starts[:-1])
    assert np.abs(drawn / 6000 - 1 / 3).max() < 5 * (2 / 9 / 6000) ** 0.5
    assert counts[1:101].min() > 3  # 20 are expected
    assert abs(counts[101] - counts[102]) < 5 * 2000**0.5


def test_the_units_must_fill_a_batch() -> None:
    with pytest.raises(ValueError, match="batch_size is 4; .* not be more than the 3 persons of the text"):
        UnitBatchSampler("person", np.array([0, 1, 2, 3]), 4, KEY, "a")


def test_the_loss_of_an_example_does_not_depend_on_the_length_of_the_others() -> None:
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.tensor([[1, 2, 3, 4, 5], [6, 0, -1, -1, -1]], dtype=torch.int32)
    alone = [F.cross_entropy(logits[0], targets[0].long()), F.cross_entropy(logits[1, :2], targets[1, :2].long())]
    loss = mean_of_examples(logits, targets)
    torch.testing.assert_close(loss, (alone[0] + alone[1]) / 2)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[1, 2:] == 0).all()
    whole = mean_of_examples(logits, torch.where(targets < 0, 0, targets))
    torch.testing.assert_close(whole, F.cross_entropy(logits.flatten(0, 1), targets.clamp(min=0).flatten().long()))
    empty = mean_of_examples(logits[:0], targets[:0])
    assert empty == 0
    assert (torch.autograd.grad(empty, logits)[0] == 0).all()
