"""Blocks cover the text, samplers cover the blocks."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from worldlm.data import BlockBatchSampler, Blocks, PackedCorpus, PoissonBatchSampler


def _blocks(num_tokens: int, seq_len: int, dtype: type[np.integer] = np.uint16) -> Blocks:
    tokens = np.arange(num_tokens).astype(dtype)
    return Blocks(PackedCorpus(Path("unused"), tokens, num_tokens, 1), seq_len)


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
    batch = _blocks(10, 3).__getitems__([])
    assert batch.shape == (0, 4)
    assert batch.dtype == torch.int64


def test_a_text_shorter_than_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match=r"3 tokens are fewer than a block of 3 \+ 1 tokens"):
        _blocks(3, 3)
    assert len(_blocks(4, 3)) == 1


def test_every_pass_sees_every_block_once_in_a_new_order() -> None:
    sampler = BlockBatchSampler(10, 4, seed=1, node="a")
    sampler.length = 5
    batches = list(sampler)
    assert [len(batch) for batch in batches] == [4] * 5 == [4] * len(sampler)
    drawn = [index for batch in batches for index in batch]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]


def test_a_batch_may_be_larger_than_the_text() -> None:
    (batch,) = BlockBatchSampler(3, 7, seed=0, node="a")
    assert sorted(batch[:3]) == sorted(batch[3:6]) == [0, 1, 2]
    assert len(batch) == 7


@pytest.mark.parametrize("kind", [BlockBatchSampler, PoissonBatchSampler])
def test_seed_and_node_make_different_orders(
    kind: type[BlockBatchSampler | PoissonBatchSampler],
) -> None:
    orders = {str(list(kind(50, 5, seed, node))) for seed in (0, 1) for node in "ab"}
    assert len(orders) == 4


def test_poisson_batches_have_the_rate_they_claim() -> None:
    sampler = PoissonBatchSampler(20, 3, seed=0, node="a")
    sampler.length = 4000
    assert sampler.sample_rate == 0.15
    taken = np.zeros((sampler.length, 20))
    for row, batch in zip(taken, sampler, strict=True):
        assert len(set(batch)) == len(batch)
        row[batch] = 1
    deviation = np.sqrt(0.15 * 0.85 / sampler.length)
    assert np.abs(taken.mean(0) - 0.15).max() < 5 * deviation
    assert np.abs(np.asarray(np.corrcoef(taken.T))[np.triu_indices(20, 1)]).max() < 5 / np.sqrt(sampler.length)
    sizes = taken.sum(1)
    assert sizes.var() == pytest.approx(20 * 0.15 * 0.85, rel=0.1)
    assert sizes.min() == 0


def test_poisson_takes_no_more_than_all() -> None:
    with pytest.raises(ValueError, match="batch_size is 4.* 3 blocks"):
        PoissonBatchSampler(3, 4, seed=0, node="a")
    assert sorted(next(iter(PoissonBatchSampler(3, 3, seed=0, node="a")))) == [0, 1, 2]


def test_blocks_travel_as_a_path() -> None:
    _, (packed, seq_len) = _blocks(100_000, 7).__reduce__()
    assert (packed.num_tokens, seq_len) == (100_000, 7)
    sampler = BlockBatchSampler(9, 2, seed=3, node="n")
    assert list(pickle.loads(pickle.dumps(sampler))) == list(sampler)
