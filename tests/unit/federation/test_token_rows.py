"""Rows weighted by their tokens, compared with numbers computed by hand and a plain loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from worldlm.federation.averaging import weighted_mean
from worldlm.federation.token_rows import (
    Tally,
    mean_of_rows,
    move_rows_towards_,
    own_row_weights,
    row_shares,
    smoothed,
    sum_of_rows,
    weighted_mean_by_rows,
)

START = torch.tensor([[9.0, 9.0], [9.0, 9.0], [9.0, 9.0], [7.0, 5.0]])
ONE = torch.tensor([[0.0, 8.0], [1.0, 2.0], [2.0, 4.0], [50.0, 50.0]])
TWO = torch.tensor([[4.0, 0.0], [30.0, 30.0], [6.0, 8.0], [60.0, 60.0]])


def float64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_rows_by_hand() -> None:
    mean = mean_of_rows([ONE, TWO], [float64(3, 5, 1, 0), float64(1, 0, 1, 0)], START)
    # weights of the rows: 3 : 1, only the first, equal, none
    assert mean.tolist() == [[1.0, 6.0], [1.0, 2.0], [4.0, 6.0], [7.0, 5.0]]


def test_the_rows_that_a_single_participant_read_are_copied() -> None:
    mean = mean_of_rows([ONE], [float64(0.1, 2, 0, 3e-9)], START)
    assert mean.tolist() == [ONE[0].tolist(), ONE[1].tolist(), START[2].tolist(), ONE[3].tolist()]


def test_arguments_are_not_modified() -> None:
    given = [ONE.clone(), TWO.clone(), START.clone()]
    mean_of_rows(given[:2], [float64(1, 0, 1, 0), float64(1, 0, 0, 0)], given[2])
    assert [tensor.tolist() for tensor in given] == [tensor.tolist() for tensor in (ONE, TWO, START)]


def test_shares_by_hand() -> None:
    assert row_shares(torch.tensor([1, 0, 3]), 3).tolist() == [0.25, 0.0, 0.75]
    assert row_shares(torch.zeros(3), 3).tolist() == [0.0, 0.0, 0.0]
    assert row_shares(None, 4).tolist() == [0.25] * 4


def test_a_model_is_averaged_by_rows_and_by_weights() -> None:
    models = [{"a": torch.tensor([4.0]), "rows": ONE, "b": torch.tensor([0.0])}]
    models.append({"a": torch.tensor([8.0]), "rows": TWO, "b": torch.tensor([16.0])})
    shares = [{"rows": float64(0.5, 0.5, 0, 0)}, {"rows": float64(0.5, 0, 0.5, 0)}]
    mean = weighted_mean_by_rows(models, [3.0, 1.0], shares, {"rows": START})
    assert list(mean) == ["a", "rows", "b"]  # an outer optimizer's state goes by the order
    assert (mean["a"].item(), mean["b"].item()) == (5.0, 4.0)
    assert mean["rows"].tolist() == [[1.0, 6.0], [1.0, 2.0], [6.0, 8.0], [7.0, 5.0]]


def test_weights_equal_those_of_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    models = [{"e": torch.randn(6, 3, generator=generator)} for _ in range(4)]
    counts = [torch.randint(0, 5, (6,), generator=generator) for _ in range(4)]
    counts[2][:] = 0  # it read nothing
    weights, start = [5.0, 0.5, 2.0, 0.0], {"e": torch.randn(6, 3, generator=generator)}
    result = weighted_mean_by_rows(models, weights, [{"e": row_shares(c, 6)} for c in counts], start)["e"]
    for row in range(6):
        says = [w * float(c[row]) / max(1.0, float(c.sum())) for w, c in zip(weights, counts, strict=True)]
        for column in range(3):
            pairs = zip(says, models, strict=True)
            total = sum(say * float(model["e"][row, column]) for say, model in pairs)
            expected = total / sum(says) if sum(says) else float(start["e"][row, column])
            assert float(result[row, column]) == pytest.approx(expected, abs=1e-6)


def test_equal_shares_give_the_plain_mean() -> None:
    models = [{"e": ONE}, {"e": TWO}]
    result = weighted_mean_by_rows(models, [3.0, 1.0], [{"e": row_shares(None, 4)}] * 2, {"e": START})
    torch.testing.assert_close(result, weighted_mean(models, [3.0, 1.0]), rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------- the tally


def test_a_tally_counts_every_token_of_every_batch() -> None:
    tally = Tally.empty(4)
    tally.add_(torch.tensor([[0, 1, 1], [3, 1, 0]]), 0, 1)
    tally.add_(torch.tensor([[3, 3, 3]]), 1, 1)
    tally.add_(torch.empty(0, 3, dtype=torch.int64), 2, 1)  # Poisson sampling may draw nothing
    assert tally.total.tolist() == [2, 3, 0, 4]


def test_repeated_batches_count_once() -> None:
    batches = [torch.tensor([[i, 4]]) for i in range(4)]
    tally = Tally.empty(5)
    for position in (0, 1, 2):
        tally.add_(batches[position], position, 2)
    for position in (2, 3):  # a restart after the first optimizer step, within the second
        tally.add_(batches[position], position, 2)
    assert tally.total.tolist() == [1, 1, 1, 1, 4]
    tally = Tally.empty(5)
    for position in (0, 0, 1, 2, 2, 3):
        tally.add_(batches[position], position, 1)
    assert tally.total.tolist() == [1, 1, 1, 1, 4]


# ---------------------------------------------------------------- mixtures


def test_smoothed_shares_by_hand() -> None:
    found = smoothed(float64(0.75, 0.25, 0.0, 0.0))
    torch.testing.assert_close(found, torch.tensor([0.745, 0.25, 0.0025, 0.0025]))
    assert float(found.sum()) == pytest.approx(1.0)


def test_an_unrelated_node_does_not_decide_about_a_row_that_no_related_node_has_read() -> None:
    """It has a weight of 1e-4, and the others have never read the token of the first row."""
    models, weights = [{"e": torch.zeros(2, 1)}, {"e": torch.ones(2, 1)}], [1.0 - 1e-4, 1e-4]
    read = [float64(0.0, 1.0), float64(0.5, 0.5)]
    assert float(sum_of_rows(models, "e", [{"e": smoothed(shares)} for shares in read], weights)[0]) < 0.02
    assert float(sum_of_rows(models, "e", [{"e": shares.float()} for shares in read], weights)[0]) == 1.0


def test_one_tensor_of_one_model_is_in_memory_at_a_time(lazy_models: Any) -> None:
    models, most = lazy_models({"e": (5, 2), "b": (3,)}, 4)
    weights, shares = [0.1, 0.2, 0.3, 0.4], [{"e": torch.full((5,), 0.2)}] * 4
    mixed = sum_of_rows(models, "e", shares, weights)
    assert most() == 10
    torch.testing.assert_close(mixed, weighted_mean([{"e": model["e"]} for model in models], weights)["e"])


def test_own_row_weights_by_hand() -> None:
    found = own_row_weights(0.25, torch.tensor([0.5, 0.1]), torch.tensor([0.5, 0.3]))
    assert found.tolist() == pytest.approx([0.25, 0.1])
    assert own_row_weights(0.0, torch.tensor([0.5]), torch.tensor([0.5])).tolist() == [0.0]
    assert own_row_weights(1.0, torch.tensor([0.5]), torch.tensor([0.5])).tolist() == [1.0]


def test_rows_move_by_their_rates_and_are_copied_at_one() -> None:
    target = ONE.clone()
    move_rows_towards_(target, TWO, torch.tensor([1.0, 0.0, 0.5, 1.0]))
    assert target.tolist() == [TWO[0].tolist(), ONE[1].tolist(), [4.0, 6.0], TWO[3].tolist()]
