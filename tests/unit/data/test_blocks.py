"""Blocks cover the text of a corpus or of several."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from worldlm.data import Blocks, MixedBlocks, PackedCorpus, join_blocks
from worldlm.data.packing import Packing


def _packed(tokens: np.ndarray, num_bytes: int = 1, folder: Path | None = None) -> PackedCorpus:
    """Pack tokens, on disk if there is a folder."""
    if folder is None:
        return PackedCorpus(Path("unused"), tokens, num_bytes, 1)
    packing = Packing(folder, str(tokens.dtype))
    packing.append("train", tokens, num_bytes, np.array([len(tokens)]), np.zeros(1, np.uint64))
    packing.finish()
    return PackedCorpus.open(folder / "train.bin")


def _blocks(num_tokens: int, seq_len: int, dtype: type[np.integer] = np.uint16, first: int = 0) -> Blocks:
    return Blocks(_packed(np.arange(first, first + num_tokens).astype(dtype)), seq_len)


def _mixed() -> MixedBlocks:
    mixed = join_blocks([_blocks(7, 2), _blocks(3, 2, first=100), _blocks(6, 2, first=200)])
    assert isinstance(mixed, MixedBlocks)
    return mixed


ROWS = [[0, 1, 2], [2, 3, 4], [4, 5, 6], [100, 101, 102], [200, 201, 202], [202, 203, 204]]
"""The blocks of `_mixed`."""


def test_blocks_overlap_by_one_token() -> None:
    blocks = _blocks(10, 3)
    assert [blocks[i].tolist() for i in range(len(blocks))] == [
        [0, 1, 2, 3],
        [3, 4, 5, 6],
        [6, 7, 8, 9],
    ]
    assert len(_blocks(9, 3)) == 2


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_a_batch_is_one_tensor(dtype: type[np.integer]) -> None:
    batch = _blocks(65536, 3, dtype).__getitems__([21844, 0])
    assert batch.dtype == torch.int64
    assert batch.tolist() == [[65532, 65533, 65534, 65535], [0, 1, 2, 3]]


def test_an_empty_batch_has_a_shape() -> None:
    for blocks in (_blocks(10, 3), MixedBlocks([_blocks(10, 3), _blocks(4, 3)])):
        batch = blocks.__getitems__([])
        assert batch.shape == (0, 4)
        assert batch.dtype == torch.int64


def test_a_text_shorter_than_a_block_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"3 tokens are fewer than a block of 3 \+ 1 tokens"):
        _blocks(3, 3)
    assert len(_blocks(4, 3)) == 1


def test_several_corpora_are_one_data_set() -> None:
    mixed = _mixed()
    assert [block.tolist() for block in mixed] == ROWS
    assert len(mixed) == 6 == sum(mixed.sizes)
    assert mixed.sizes == [3, 1, 2]
    assert mixed.seq_len == 2


def test_rows_come_in_the_order_of_the_indices() -> None:
    indices = [5, 0, 3, 3, 2, 4]
    batch = _mixed().__getitems__(indices)
    assert batch.dtype == torch.int64
    assert batch.tolist() == [ROWS[i] for i in indices]


def test_parts_may_be_of_different_width() -> None:
    mixed = MixedBlocks([_blocks(2, 1, np.uint16, first=65534), _blocks(2, 1, np.uint32, first=65535)])
    assert mixed.__getitems__([1, 0]).tolist() == [[65535, 65536], [65534, 65535]]


@pytest.mark.parametrize("index", [-1, 6])
def test_an_index_out_of_range_is_rejected(index: int) -> None:
    with pytest.raises(IndexError, match=f"there are 6 blocks, not 0 to 6|not {index} to 0"):
        _mixed().__getitems__([0, index])


def test_the_blocks_of_a_single_corpus_are_unchanged() -> None:
    blocks = _blocks(10, 3)
    assert join_blocks([blocks]) is blocks
    assert blocks.sizes == [3]


def test_parts_must_have_blocks_of_one_length() -> None:
    with pytest.raises(AssertionError):
        MixedBlocks([_blocks(10, 3), _blocks(10, 4)])


def test_bytes_per_token_cover_all_parts() -> None:
    texts = [_packed(np.zeros(size, np.uint16), num_bytes) for size, num_bytes in ((10, 40), (30, 60))]
    parts = [Blocks(text, 3) for text in texts]
    assert [part.bytes_per_token for part in parts] == [4, 2]
    assert MixedBlocks(parts).bytes_per_token == 2.5


def test_blocks_are_pickled_as_a_path(tmp_path: Path) -> None:
    texts = [np.full(50_000, token, np.uint16) for token in (7, 8)]
    parts = [Blocks(_packed(text, 1, tmp_path / str(text[0])), 9999) for text in texts]
    for blocks in (parts[0], MixedBlocks(parts)):
        sent = pickle.dumps(blocks)
        assert len(sent) < 1000
        arrived = pickle.loads(sent)
        assert len(arrived) == len(blocks)
        assert torch.equal(arrived[len(blocks) - 1], blocks[len(blocks) - 1])
