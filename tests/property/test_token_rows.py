"""Properties of averaging by rows and of counting tokens, for any numbers."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldlm.federation.averaging import weighted_mean
from worldlm.federation.token_rows import Tally, mean_of_rows, row_shares, weighted_mean_by_rows

quick = settings(max_examples=40)
seeds = st.integers(0, 2**32)
counts = st.lists(st.lists(st.integers(0, 9), min_size=5, max_size=5), min_size=1, max_size=4)


def tables(number: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 3, generator=generator) for _ in range(number)]


@quick
@given(seeds, st.lists(st.floats(0.01, 100), min_size=1, max_size=5), st.lists(st.integers(1, 10**6), min_size=5))
def test_equal_counts_give_the_plain_mean(seed: int, weights: list[float], row: list[int]) -> None:
    models = [{"e": table} for table in tables(len(weights), seed)]
    shares = [{"e": row_shares(torch.tensor(row[:5]), 5)} for _ in models]
    mean = weighted_mean_by_rows(models, weights, shares, {"e": torch.full((5, 3), 1e9)})
    torch.testing.assert_close(mean, weighted_mean(models, weights), rtol=1e-6, atol=1e-6)


@quick
@given(seeds, counts)
def test_a_row_is_within_the_range_of_its_readers(seed: int, rows: list[list[int]]) -> None:
    *models, start = tables(len(rows) + 1, seed)
    mean = mean_of_rows(models, [torch.tensor(counts).double() for counts in rows], start)
    for r in range(5):
        readers = [model[r] for model, counts in zip(models, rows, strict=True) if counts[r]]
        if not readers:
            assert torch.equal(mean[r], start[r])
            continue
        assert (mean[r] >= torch.stack(readers).amin(0) - 1e-5).all()
        assert (mean[r] <= torch.stack(readers).amax(0) + 1e-5).all()
        if len(readers) == 1:
            assert torch.equal(mean[r], readers[0])


@quick
@given(st.data(), st.integers(1, 4), st.integers(1, 9), seeds)
def test_an_interrupted_fit_has_the_same_counts(data: Any, batches_per_step: int, num_batches: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batches = torch.randint(0, 6, (num_batches, 2, 4), generator=generator)
    tally, position = Tally.empty(6), 0
    for _ in range(data.draw(st.integers(0, 3))):
        stop = data.draw(st.integers(position, num_batches - 1))
        for i in range(position, stop + 1):  # the last of these begins, and does not end
            tally.add_(batches[i], i, batches_per_step)
        tally = Tally(tally.settled.clone(), tally.running.clone(), tally.start)
        position = stop - stop % batches_per_step
    for i in range(position, num_batches):
        tally.add_(batches[i], i, batches_per_step)
    assert tally.total.tolist() == torch.bincount(batches.flatten(), minlength=6).tolist()
