"""Batches are a pure function of (seed, node, position)."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from worldlm.data import (
    BlockBatchSampler,
    Blocks,
    MixtureBatchSampler,
    NodeSampler,
    PackedCorpus,
    join_blocks,
    samplers,
)
from worldlm.data.poisson_samplers import make_sampler
from worldlm.data.samplers import quotas, spread
from worldlm.federation.noise_key import NoiseKey

KEY = NoiseKey(bytes(32))

WINDOW = 40
"""Instead of 10,000, so that a few batches extend over several windows."""


@pytest.fixture(autouse=True, scope="module")
def _small_windows() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samplers, "WINDOW", WINDOW)
        yield


@dataclass(frozen=True)
class Kind:
    """The text of a node and its sampler."""

    sizes: list[int]
    batch_size: int
    weights: list[float] | None
    poisson: bool
    seed: int

    def sampler(self) -> NodeSampler:
        return make_sampler(
            self.sizes, self.batch_size, self.seed, "node", weights=self.weights, key=KEY if self.poisson else None
        )


def _visits(sampler: NodeSampler, lengths: list[int]) -> list[list[int]]:
    """Draw the batches of several fits from one sampler, as the training loop does."""
    batches = []
    for length in lengths:
        sampler.length = length
        batches += list(sampler)
        sampler.start += length
    return batches


patient = settings(deadline=None)  # a part of one block takes a permutation for every draw
seeds = st.integers(0, 2**63 - 1)


@st.composite
def kinds(draw: st.DrawFn, weighted: bool | None = None) -> Kind:
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    if draw(st.booleans()) if weighted is None else weighted:
        weights = [draw(st.floats(1e-6, 1e6)) for _ in sizes]
        return Kind(sizes, draw(st.integers(1, WINDOW + 10)), weights, False, draw(seeds))
    return Kind(sizes, draw(st.integers(1, sum(sizes))), None, draw(st.booleans()), draw(seeds))


@patient
@given(kinds(), st.lists(st.integers(0, 5), max_size=4))
def test_any_split_into_fits_gives_the_same_batches(kind: Kind, lengths: list[int]) -> None:
    together = _visits(kind.sampler(), [sum(lengths)])
    assert _visits(kind.sampler(), lengths) == together
    assert len(together) == sum(lengths)


@patient
@given(kinds(), st.lists(st.integers(0, 20), min_size=1, max_size=5))
def test_any_order_of_fits_gives_the_same_batches(kind: Kind, starts: list[int]) -> None:
    batches = _visits(kind.sampler(), [max(starts) + 1])
    sampler = kind.sampler()
    sampler.length = 1
    for start in starts:
        sampler.start = start
        assert list(sampler) == [batches[start]]
        if not kind.poisson:  # a noise key is never pickled
            assert list(pickle.loads(pickle.dumps(sampler))) == [batches[start]]


@patient
@given(kinds(), st.integers(0, 20), st.integers(0, 5))
def test_a_resumed_run_draws_the_same_batches(kind: Kind, position: int, length: int) -> None:
    before = kind.sampler()
    _visits(before, [position])
    resumed = kind.sampler()
    resumed.start = position
    assert _visits(resumed, [length]) == _visits(before, [length])


@patient
@given(kinds(), st.integers(10**9, 10**15))
def test_a_distant_position_needs_no_replay(kind: Kind, position: int) -> None:
    sampler = kind.sampler()
    sampler.start, sampler.length = position, 2
    first, second = sampler
    assert [sampler.batch(position + 1), sampler.batch(position)] == [second, first]
    assert all(0 <= block < sum(kind.sizes) for block in first + second)


@patient
@given(st.integers(1, 200), st.integers(1, 40), seeds)
def test_every_pass_is_a_permutation(num_blocks: int, batch_size: int, seed: int) -> None:
    batches = _visits(BlockBatchSampler(num_blocks, batch_size, seed, "node"), [3 * num_blocks])
    drawn = [index for batch in batches for index in batch]
    for begin in range(0, 3 * num_blocks, num_blocks):
        assert sorted(drawn[begin : begin + num_blocks]) == list(range(num_blocks))


@patient
@given(st.lists(st.floats(0, 1e308, exclude_min=True), min_size=1, max_size=WINDOW))
def test_quotas_are_near_their_shares(weights: list[float]) -> None:
    given_quotas = quotas(weights)
    scaled = np.array(weights) / max(weights)
    ideals = WINDOW * scaled / scaled.sum()
    assert sum(given_quotas) == WINDOW
    assert min(given_quotas) >= 1
    if ideals.min() >= 1:  # none had to be lifted
        assert np.abs(np.array(given_quotas) - ideals).max() < 1 + 1e-9
    order = np.argsort(ideals, kind="stable")
    assert (np.diff(np.array(given_quotas)[order]) >= -1).all()  # where shares are nearly the same


@patient
@given(kinds(weighted=True), st.integers(1, 5 * WINDOW))
def test_shares_are_exact_in_every_window_and_close_within_it(kind: Kind, num_draws: int) -> None:
    sampler = kind.sampler()
    assert isinstance(sampler, MixtureBatchSampler)
    drawn = list(chain.from_iterable(_visits(sampler, [-(-num_draws // kind.batch_size)])))
    parts = np.searchsorted(list(accumulate(kind.sizes)), drawn, side="right")
    for part, quota in enumerate(sampler.quotas):
        counts = np.cumsum(parts == part)
        n = np.arange(1, len(drawn) + 1)
        assert (counts[WINDOW - 1 :: WINDOW] == n[WINDOW - 1 :: WINDOW] // WINDOW * quota).all()
        assert (np.abs(counts - n * quota / WINDOW) <= quota * (1 - quota / WINDOW) + 1e-9).all()


@patient
@given(kinds(weighted=True))
def test_every_part_of_a_mixture_is_read_pass_after_pass(kind: Kind) -> None:
    drawn = np.array(list(chain.from_iterable(_visits(kind.sampler(), [3 * WINDOW // kind.batch_size + 1]))))
    for first, size in zip(accumulate(kind.sizes, initial=0), kind.sizes, strict=False):
        part_blocks = drawn[(drawn >= first) & (drawn < first + size)] - first
        for begin in range(0, len(part_blocks) - size + 1, size):
            assert sorted(part_blocks[begin : begin + size]) == list(range(size))
        assert len(set(part_blocks[len(part_blocks) // size * size :])) == len(part_blocks) % size


@patient
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_spread_blocks_are_complete_and_proportional(sizes: list[int]) -> None:
    order = spread(sizes)
    assert sorted(order) == list(range(sum(sizes)))
    parts = np.searchsorted(list(accumulate(sizes)), order, side="right")
    n = np.arange(1, sum(sizes) + 1)
    for part, size in enumerate(sizes):
        assert np.abs(np.cumsum(parts == part) - n * size / sum(sizes)).max() <= len(sizes) / 2 + 1e-9


@patient
@given(kinds(), st.integers(1, 20))
def test_loaders_return_the_blocks_of_the_sampler(kind: Kind, seq_len: int) -> None:
    rng = np.random.default_rng(kind.seed)
    texts = [rng.integers(0, 2**16, size * seq_len + rng.integers(1, seq_len + 1), np.uint16) for size in kind.sizes]
    blocks = join_blocks([Blocks(PackedCorpus(Path("unused"), text, 1, 1), seq_len) for text in texts])
    assert blocks.sizes == kind.sizes
    rows = [text[i * seq_len :][: seq_len + 1].tolist() for text in texts for i in range((len(text) - 1) // seq_len)]
    sampler = kind.sampler()
    sampler.length = min(sampler.length, 4)
    loader = DataLoader(blocks, batch_sampler=sampler, collate_fn=_identity)
    for indices, batch in zip(sampler, loader, strict=True):
        assert batch.tolist() == [rows[i] for i in indices]
        assert batch.shape == (len(indices), seq_len + 1)


def _identity(batch: Any) -> Any:
    return batch
