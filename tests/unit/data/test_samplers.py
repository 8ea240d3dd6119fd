"""Samplers cover the blocks, in fixed orders and in the requested shares."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from worldlm.data import (
    BlockBatchSampler,
    Blocks,
    MixedBlocks,
    MixtureBatchSampler,
    NodeSampler,
    PackedCorpus,
    PoissonBatchSampler,
)
from worldlm.data.poisson_samplers import make_sampler
from worldlm.data.samplers import WINDOW, quotas, spread
from worldlm.federation.noise_key import NoiseKey

KEY = NoiseKey(bytes(32))
SIZES, WEIGHTS = [30, 7, 3], [0.5, 0.3, 0.2]
KINDS: dict[str, dict[str, Any]] = {"uniform": {}, "poisson": {"key": KEY}, "mixture": {"weights": WEIGHTS}}


def _sampler(kind: str, batch_size: int = 4, seed: int = 0, node: str = "a") -> NodeSampler:
    return make_sampler(SIZES, batch_size, seed, node, **KINDS[kind])


def _visit(sampler: NodeSampler, start: int, length: int) -> list[list[int]]:
    sampler.start, sampler.length = start, length
    return list(sampler)


def _digest(batches: list[list[int]]) -> str:
    return hashlib.sha256(json.dumps(batches).encode()).hexdigest()[:16]


# ---------------------------------------------------------------------- orders that must not change between versions


def test_the_uniform_order_is_fixed() -> None:
    assert _visit(BlockBatchSampler(10, 4, 1, "a"), 0, 6) == [
        [6, 4, 1, 3],
        [8, 7, 9, 5],
        [2, 0, 6, 5],
        [7, 0, 3, 4],
        [1, 8, 2, 9],
        [3, 9, 0, 8],
    ]
    assert _visit(BlockBatchSampler(7, 3, 1337, "cc"), 5, 4) == [[4, 5, 0], [2, 6, 3], [6, 2, 4], [0, 1, 5]]
    assert _digest(_visit(BlockBatchSampler(1000, 32, 1337, "wk"), 17, 64)) == "3f4a3714472b3306"
    assert _digest(_visit(BlockBatchSampler(70_000, 16, 1337, "wk"), 4300, 150)) == "4716e553f291d349"


def test_the_poisson_order_is_fixed() -> None:
    expected = [[1, 8, 14], [2, 5, 17], [6, 18], [6, 8, 14, 19]]
    assert _visit(PoissonBatchSampler(20, 3, KEY, "a"), 3, 4) == expected
    assert _digest(_visit(PoissonBatchSampler(5000, 32, KEY, "wk"), 17, 64)) == "afae67cc401c47fe"


def test_the_order_of_a_mixture_is_fixed() -> None:
    sampler = MixtureBatchSampler([30, 7, 3], [0.5, 0.3, 0.2], 4, 1337, "wk")
    assert _visit(sampler, 0, 3) == [[35, 39, 32, 36], [18, 13, 37, 34], [38, 39, 6, 16]]
    assert _digest(_visit(sampler, 2400, 200)) == "ee0f2477fbef44c7"


@pytest.mark.parametrize("kind", ["uniform", "mixture"])
def test_seed_and_node_make_different_orders(kind: str) -> None:
    orders = {str(list(_sampler(kind, 4, seed, node))) for seed in (0, 1) for node in "ab"}
    assert len(orders) == 4


@pytest.mark.parametrize("kind", ["uniform", "mixture"])
def test_samplers_can_be_pickled(kind: str) -> None:
    sampler = _sampler(kind)
    assert list(pickle.loads(pickle.dumps(sampler))) == list(sampler)


# ---------------------------------------------------------------------- uniform


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


def test_a_mixture_without_weights_is_one_text() -> None:
    assert list(_sampler("uniform")) == list(BlockBatchSampler(40, 4, 0, "a"))
    assert list(_sampler("poisson")) == list(PoissonBatchSampler(40, 4, KEY, "a"))


# ---------------------------------------------------------------------- Poisson


def test_poisson_draws_differ_by_key_and_node_and_never_leave_the_process() -> None:
    samplers = [PoissonBatchSampler(40, 4, key, node) for key in (KEY, NoiseKey(b"k" * 32)) for node in "ab"]
    assert len({str(list(sampler)) for sampler in samplers}) == 4
    with pytest.raises(TypeError, match="a noise key is secret"):
        pickle.dumps(samplers[0])


def test_a_seed_in_place_of_the_key_is_rejected() -> None:
    with pytest.raises(TypeError, match=r"key is 7: it must be a NoiseKey, such as trainer\.noise_key"):
        PoissonBatchSampler(20, 3, 7, "a")  # type: ignore[arg-type]


def test_poisson_batches_have_the_sample_rate() -> None:
    sampler = PoissonBatchSampler(20, 3, KEY, node="a")
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


def test_a_poisson_batch_size_is_at_most_the_text() -> None:
    with pytest.raises(ValueError, match="batch_size is 4.* 3 blocks"):
        PoissonBatchSampler(3, 4, KEY, node="a")
    assert sorted(next(iter(PoissonBatchSampler(3, 3, KEY, node="a")))) == [0, 1, 2]


def test_poisson_sampling_rejects_weights() -> None:
    with pytest.raises(ValueError, match="weights of a mixture cannot be combined with example_privacy"):
        make_sampler(SIZES, 4, 0, "a", weights=WEIGHTS, key=KEY)


# ---------------------------------------------------------------------- mixtures


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1], [10_000]),
        ([0.1, 0.2, 0.7], [1000, 2000, 7000]),
        ([7, 2, 1], [7000, 2000, 1000]),
        ([1, 1, 1], [3334, 3333, 3333]),
        ([0.33336, 0.33332, 0.33332], [3334, 3333, 3333]),
        ([0.99999, 0.00001], [9999, 1]),
        ([5e-324, 1.7e308], [1, 9999]),
        ([1e-9, 1e-9, 2, 1], [1, 1, 6666, 3332]),
        ([1e-9, 1e-9, 9999.5, 0.5], [1, 1, 9997, 1]),
    ],
)
def test_quotas_are_rounded_shares(weights: list[float], expected: list[int]) -> None:
    assert quotas(weights) == expected
    assert sum(expected) == WINDOW


def test_every_window_takes_its_quotas_in_a_new_order() -> None:
    sampler = MixtureBatchSampler([2, 3000, 50_000], [1, 2, 3], WINDOW, 0, "a")
    parts = [np.searchsorted([2, 3002], batch, side="right") for batch in _visit(sampler, 3, 2)]
    for part in parts:
        assert Counter(part.tolist()) == {0: 1667, 1: 3333, 2: 5000}
        shares = [np.bincount(hundred, minlength=3)[2] for hundred in part.reshape(100, 100)]
        assert np.mean(shares) == 50
        assert 3 < np.std(shares) < 7  # 5, were they drawn independently
    assert not np.array_equal(*parts)


def test_every_part_is_read_pass_after_pass() -> None:
    sampler = MixtureBatchSampler([5, 70], [0.4, 0.6], 100, 0, "a")
    drawn = np.concatenate(_visit(sampler, 0, 150))  # a window and a half
    for blocks in (range(5), range(5, 75)):
        drawn_part = drawn[np.isin(drawn, blocks)]
        passes = drawn_part[: len(drawn_part) // len(blocks) * len(blocks)].reshape(-1, len(blocks))
        assert len(passes) > 120
        assert (np.sort(passes) == blocks).all()
        assert len({tuple(order) for order in passes.tolist()}) > 100


def test_a_batch_may_be_larger_than_a_window() -> None:
    large_batch = MixtureBatchSampler(SIZES, WEIGHTS, 2 * WINDOW + 10, 0, "a").batch(0)
    assert large_batch == [
        block for batch in _visit(MixtureBatchSampler(SIZES, WEIGHTS, 10, 0, "a"), 0, 2001) for block in batch
    ]


def test_every_prefix_of_spread_blocks_has_every_part() -> None:
    assert spread([4]) == [0, 1, 2, 3]
    assert spread([4, 2, 1]) == [0, 4, 1, 6, 2, 5, 3]
    order = spread([1000, 100, 11])
    assert sorted(order) == list(range(1111))
    assert np.bincount(np.searchsorted([1000, 1100], order[:202], side="right")).tolist() == [182, 18, 2]


# ---------------------------------------------------------------------- fits of a node


def test_an_iterator_keeps_the_start_and_length_of_its_creation() -> None:
    sampler = _sampler("uniform")
    sampler.start, sampler.length = 5, 2
    batches = iter(sampler)
    sampler.start, sampler.length = 9, 9
    assert list(batches) == [sampler.batch(5), sampler.batch(6)]


@pytest.mark.parametrize("kind", KINDS)
def test_workers_read_the_same_batches_in_every_fit(kind: str) -> None:
    texts = [np.arange(size + 1, dtype=np.uint16) + 1000 * part for part, size in enumerate(SIZES)]
    blocks = MixedBlocks([Blocks(PackedCorpus(Path("unused"), text, 1, 1), 1) for text in texts])

    def open_loader(num_workers: int) -> DataLoader[Any]:
        sampler, persistent = _sampler(kind), num_workers > 0
        return DataLoader(
            blocks, batch_sampler=sampler, collate_fn=_same, num_workers=num_workers, persistent_workers=persistent
        )

    def visit(loader: DataLoader[Any], start: int, length: int, taken: int | None = None) -> list[torch.Tensor]:
        loader.batch_sampler.start, loader.batch_sampler.length = start, length
        return list(islice(loader, taken))

    expected = visit(open_loader(0), 0, 40)
    with_workers = open_loader(2)
    visits = [visit(with_workers, *span) for span in ((0, 9), (9, 1), (10, 12))]
    visits += [visit(with_workers, 22, 15, taken=4), visit(with_workers, 26, 14)]  # broken off, with batches on the way
    again = [batch for batches in visits for batch in batches]
    assert len(again) == len(expected) == 40
    assert all(map(torch.equal, again, expected))
    resumed = visit(open_loader(2), 17, 5)
    assert all(map(torch.equal, resumed, expected[17:22]))
    assert len(resumed) == 5


def _same(batch: Any) -> Any:
    return batch
