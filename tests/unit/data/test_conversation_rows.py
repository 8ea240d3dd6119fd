"""Rows of conversations: whole, in order, with padding at the end."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worldlm.data import ConversationRows, PackedCorpus
from worldlm.data.conversation_rows import IGNORED, next_fit
from worldlm.data.cutting import describe, join
from worldlm.data.packed import DOCUMENT, SPLITS, open_folder
from worldlm.data.packing import Packing


def _corpus(lengths: list[int], persons: list[int] | None = None, first: int = 1) -> PackedCorpus:
    """Return conversations whose tokens are first, first + 1, ...; all but the first token of each are predicted."""
    tokens = np.arange(first, first + sum(lengths), dtype=np.uint16)
    documents = np.empty(len(lengths), DOCUMENT)
    documents["end"], documents["person"] = np.cumsum(lengths), persons or [0] * len(lengths)
    targets = np.ones(len(tokens), np.uint8)
    targets[np.cumsum([0, *lengths[:-1]])] = 0
    return PackedCorpus(
        Path("a.bin"), tokens, 2 * int(targets.sum()), len(lengths), documents=documents, targets=targets,
        num_targets=int(targets.sum()),
    )  # fmt: skip


def test_rows_by_hand() -> None:
    rows = ConversationRows([_corpus([3, 2, 4, 6])], 6)
    batch = rows.__getitems__([0, 1, 2])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 0], [6, 7, 8, 9, 0, 0], [10, 11, 12, 13, 14, 15]]
    x = IGNORED
    assert batch["labels"].tolist() == [[x, 2, 3, x, 5, x], [x, 7, 8, 9, x, x], [x, 11, 12, 13, 14, 15]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0], [0, 1, 2, 3, 4, 5]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert (len(rows), rows.sizes, rows.num_targets, rows.bytes_per_token) == (3, [3], 11, 2.0)
    assert rows.padding == pytest.approx(3 / 18)
    assert describe(rows) == "4 conversations in 3 rows (17% padding)"
    assert rows[1]["input_ids"].tolist() == batch["input_ids"][1].tolist()
    empty = rows.__getitems__([])
    assert {tuple(tensor.shape) for tensor in empty.values()} == {(0, 6)}
    with pytest.raises(IndexError, match="there are 3 rows"):
        rows.__getitems__([3])


@given(st.lists(st.integers(2, 14), min_size=1, max_size=40), st.integers(8, 16))
def test_every_conversation_is_in_one_row_whole_and_in_order(lengths: list[int], seq_len: int) -> None:
    kept = [length for length in lengths if length <= seq_len]
    if not kept:
        with pytest.raises(ValueError, match="all .* conversations have more tokens than max_seq_len"):
            ConversationRows([_corpus(lengths)], seq_len)
        return
    rows = ConversationRows([_corpus(lengths)], seq_len)
    batch = rows.__getitems__(list(range(len(rows))))
    found: list[list[int]] = []
    for tokens, positions in zip(batch["input_ids"].tolist(), batch["position_ids"].tolist(), strict=True):
        size = sum(token > 0 for token in tokens)
        assert not any(tokens[size:])  # padding is at the end
        starts = [at for at in range(size) if positions[at] == 0]
        found += [tokens[a:b] for a, b in zip(starts, [*starts[1:], size], strict=True)]
    begins = np.cumsum([0, *lengths]).tolist()
    expected = [
        list(range(begin + 1, begin + 1 + length))
        for begin, length in zip(begins[:-1], lengths, strict=True)
        if length <= seq_len
    ]
    assert found == expected
    assert rows.num_too_long == len(lengths) - len(kept)
    assert rows.num_targets == int((batch["labels"] != IGNORED).sum()) == sum(length - 1 for length in kept)
    counts = next_fit(kept, seq_len)
    ends = np.cumsum(counts).tolist()
    for row in range(len(counts) - 1):  # a row is closed only if the next conversation does not fit
        in_row = kept[ends[row] - counts[row] : ends[row]]
        assert sum(in_row) <= seq_len < sum(in_row) + kept[ends[row]]


def test_several_corpora_are_packed_one_by_one() -> None:
    rows = ConversationRows([_corpus([2, 2]), _corpus([9, 3], first=50)], 8)
    assert rows.sizes == [1, 1]
    assert rows.num_too_long == 1
    assert rows.__getitems__([0, 1])["input_ids"].tolist() == [[1, 2, 3, 4, 0, 0, 0, 0], [59, 60, 61, 0, 0, 0, 0, 0]]


def test_conversations_that_are_too_long_are_counted_in_a_warning() -> None:
    with pytest.warns(UserWarning, match="ours: 2 of 3 conversations have more tokens than max_seq_len, 4, and are"):
        join({"ours": _corpus([5, 3, 6])}, 4)
    with pytest.raises(ValueError, match="all 2 conversations have more tokens than max_seq_len, 4"):
        join({"ours": _corpus([5, 6])}, 4)


def test_plain_text_cannot_be_mixed_with_conversations() -> None:
    plain = PackedCorpus(Path("b.bin"), np.zeros(90, np.uint16), 90, 1)
    with pytest.raises(ValueError, match=r"^plain text \(b\) and conversations \(a\) cannot be mixed in one node$"):
        join({"a": _corpus([3]), "b": plain}, 8)


def test_units_of_privacy() -> None:
    corpora = [_corpus([3, 2], [7, 9]), _corpus([2, 9, 4], [9, 7, 7], first=50)]
    documents = ConversationRows(corpora, 6, "document")
    assert documents.unit_starts is not None
    assert documents.unit_starts.tolist() == [0, 1, 2, 3, 4]
    assert documents.sizes == [4]
    persons = ConversationRows(corpora, 6, "person")
    assert persons.unit_starts is not None
    assert persons.unit_starts.tolist() == [0, 2, 4]
    batch = persons.__getitems__([0, 1, 2, 3])
    assert batch["input_ids"][:, 0].tolist() == [1, 61, 4, 50]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int32}
    blocks = ConversationRows(corpora, 6, "block")
    assert (blocks.unit_starts, blocks.sizes) == (None, [1, 1])
    assert blocks.__getitems__([0])["labels"].dtype == torch.int32
    with pytest.raises(ValueError, match="unit is person, but the corpus does not set person"):
        ConversationRows([_corpus([3])], 6, "person")


def _write(folder: Path, mask: list[int]) -> PackedCorpus:
    packing = Packing(folder, "uint16", has_targets=True)
    for split in SPLITS:
        lengths, persons = np.array([3, 2]), np.zeros(2, np.uint64)
        packing.append(split, np.arange(5, dtype=np.uint16), 3, lengths, persons, np.array(mask, bool))
    packing.finish()
    return open_folder(folder)["train"]


def test_the_checksum_depends_on_what_is_predicted(tmp_path: Path) -> None:
    masks = ([0, 1, 1, 0, 1], [0, 0, 1, 0, 1])
    corpora = [_write(tmp_path / name, mask) for name, mask in zip("abc", [*masks, masks[0]], strict=True)]
    assert [corpus.crc32 == corpora[0].crc32 for corpus in corpora] == [True, False, True]


def test_packing_continues_after_a_stop(tmp_path: Path) -> None:
    packing = Packing(tmp_path / "a", "uint16", has_targets=True)
    arguments = (np.arange(3, dtype=np.uint16), 2, np.array([3]), np.zeros(1, np.uint64), np.array([False, True, True]))
    packing.append("train", *arguments)
    packing.save()
    packing.append("train", *arguments)  # lost
    packing.close()
    again = Packing(tmp_path / "a", "uint16", has_targets=True)
    assert again.counts["train"].num_targets == 2
    for split in SPLITS:
        again.append(split, *arguments)
    again.finish()
    packed = open_folder(tmp_path / "a")["train"]
    assert packed.targets is not None
    assert packed.targets.tolist() == [0, 1, 1, 0, 1, 1]
    other = Packing(tmp_path / "b", "uint16")
    other.save()
    other.close()
    fresh = Packing(tmp_path / "b", "uint16", has_targets=True)
    assert fresh.counts["train"].num_targets == 0
    fresh.close()


def test_workers_open_the_files_themselves(tmp_path: Path) -> None:
    rows = ConversationRows([_write(tmp_path / "a", [0, 1, 1, 0, 1])], 8)
    copied = pickle.loads(pickle.dumps(rows))
    assert len(pickle.dumps(rows)) < 2000
    for name, tensor in rows.__getitems__([0]).items():
        assert torch.equal(copied.__getitems__([0])[name], tensor)
