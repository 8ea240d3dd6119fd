"""Batches are a pure function of (seed, node, position)."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from worldlm.data import BlockBatchSampler, Blocks, PackedCorpus, PoissonBatchSampler

Kind = type[BlockBatchSampler | PoissonBatchSampler]


def _visits(kind: Kind, sizes: tuple[int, int], seed: int, lengths: list[int]) -> list[list[int]]:
    """Draw visit after visit from one sampler, as the loop does."""
    sampler = kind(*sizes, seed, "node")
    batches = []
    for length in lengths:
        sampler.length = length
        batches += list(sampler)
        sampler.start += length
    return batches


kinds = st.sampled_from([BlockBatchSampler, PoissonBatchSampler])
all_sizes = st.tuples(st.integers(1, 40), st.integers(1, 40)).map(lambda s: (max(s), min(s)))
seeds = st.integers(0, 2**63 - 1)


@given(kinds, all_sizes, seeds, st.lists(st.integers(0, 9), max_size=6))
def test_any_split_into_visits_gives_the_same_batches(
    kind: Kind, sizes: tuple[int, int], seed: int, lengths: list[int]
) -> None:
    together = _visits(kind, sizes, seed, [sum(lengths)])
    assert _visits(kind, sizes, seed, lengths) == together
    assert len(together) == sum(lengths)


@given(kinds, all_sizes, seeds, st.lists(st.integers(0, 30), min_size=1, max_size=6))
def test_any_order_of_visits_gives_the_same_batches(
    kind: Kind, sizes: tuple[int, int], seed: int, starts: list[int]
) -> None:
    whole = _visits(kind, sizes, seed, [max(starts) + 1])
    sampler = kind(*sizes, seed, "node")
    sampler.length = 1
    for start in starts:
        sampler.start = start
        assert list(sampler) == [whole[start]]
        assert list(pickle.loads(pickle.dumps(sampler))) == [whole[start]]


@given(st.integers(1, 200), st.integers(1, 40), seeds)
def test_every_pass_is_a_permutation(num_blocks: int, batch_size: int, seed: int) -> None:
    batches = _visits(BlockBatchSampler, (num_blocks, batch_size), seed, [3 * num_blocks])
    drawn = [index for batch in batches for index in batch]
    for begin in range(0, 3 * num_blocks, num_blocks):
        assert sorted(drawn[begin : begin + num_blocks]) == list(range(num_blocks))


@given(st.integers(2, 300), st.integers(1, 20), all_sizes, kinds, seeds)
def test_loaders_give_the_blocks_the_sampler_names(
    num_tokens: int, seq_len: int, sizes: tuple[int, int], kind: Kind, seed: int
) -> None:
    seq_len = min(seq_len, num_tokens - 1)
    tokens = np.random.default_rng(seed).integers(0, 2**16, num_tokens, np.uint16)
    blocks = Blocks(PackedCorpus(Path("unused"), tokens, num_tokens, 1), seq_len)
    assert len(blocks) == (num_tokens - 1) // seq_len
    sampler = kind(len(blocks), min(sizes[1], len(blocks)), seed, "node")
    loader = DataLoader(blocks, batch_sampler=sampler, collate_fn=_identity)
    for indices, batch in zip(sampler, loader, strict=True):
        slices = [tokens[i * seq_len :][: seq_len + 1].tolist() for i in indices]
        assert batch.tolist() == slices
        assert batch.shape == (len(indices), seq_len + 1)


def _identity(batch: Any) -> Any:
    return batch
