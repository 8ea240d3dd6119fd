"""Clipping and noise."""

import math

import pytest
import torch
from torch import Tensor

from worldlm.federation.noise_key import NoiseKey
from worldlm.federation.parameters import norm, subtract
from worldlm.federation.privacy import Sanitised, sanitise

START = {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([5.0, 6.0, 7.0])}


def moved(length: float) -> dict[str, Tensor]:
    """A model at this distance from START, along a direction of fractions 3/5 and 4/5."""
    update = {name: torch.zeros_like(tensor) for name, tensor in START.items()}
    update["a"][0, 1], update["b"][2] = 0.6 * length, -0.8 * length
    return {name: tensor + update[name] for name, tensor in START.items()}


def clean(model, clip_norm: float, noise_multiplier: float = 0.0, seed: int = 0, start=START) -> Sanitised:
    stream = NoiseKey(bytes(32)).stream_for(seed)
    return sanitise(model, start, clip_norm=clip_norm, noise_multiplier=noise_multiplier, stream=stream)


def noise_of(result: Sanitised, mean: dict[str, Tensor] = START) -> dict[str, Tensor]:
    return subtract(result.tensors, mean)


# ---------------------------------------------------------------- clipping


def test_a_long_update_is_shortened_and_keeps_its_direction() -> None:
    result = clean(moved(10.0), clip_norm=2.0)
    torch.testing.assert_close(result.tensors, moved(2.0), rtol=1e-6, atol=1e-6)
    assert result.update_norm == pytest.approx(10.0)


def test_all_tensors_are_clipped_as_one_vector() -> None:
    zero = {name: torch.zeros(1) for name in ("x", "y")}
    result = clean({"x": torch.tensor([3.0]), "y": torch.tensor([4.0])}, clip_norm=2.5, start=zero)
    assert result.tensors["x"].item() == pytest.approx(1.5, rel=2e-6)
    assert result.tensors["y"].item() == pytest.approx(2.0, rel=2e-6)


@pytest.mark.parametrize("clip_norm", [5.0, 7.0, math.inf])
def test_a_short_update_without_noise_returns_the_same_tensors(clip_norm) -> None:
    model = {"x": torch.tensor([3.0]), "y": torch.tensor([4.0])}
    result = clean(model, clip_norm, start={"x": torch.zeros(1), "y": torch.zeros(1)})
    assert all(result.tensors[name] is tensor for name, tensor in model.items())
    assert result.tensors is not model
    assert result.update_norm == 5.0


@pytest.mark.parametrize("noise_multiplier", [0.0, 1.0])
def test_model_and_start_are_not_modified(noise_multiplier) -> None:
    model, start = moved(10.0), {name: tensor.clone() for name, tensor in START.items()}
    clean(model, 1.0, noise_multiplier, start=start)
    torch.testing.assert_close(model, moved(10.0), rtol=0, atol=0)
    torch.testing.assert_close(start, START, rtol=0, atol=0)


def test_start_may_have_more_tensors_than_the_model() -> None:
    result = clean({"b": START["b"] + 4.0}, clip_norm=1.0)
    assert list(result.tensors) == ["b"]


def test_a_name_that_the_parent_never_sent_is_rejected() -> None:
    with pytest.raises(KeyError, match="c"):
        clean({"c": torch.zeros(1)}, clip_norm=1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_becomes_noise_only(bad) -> None:
    model = moved(1.0)
    model["b"][1] = bad
    torch.testing.assert_close(clean(model, 1.0).tensors, START, rtol=0, atol=0)
    still = clean(dict(START), 1.0, noise_multiplier=0.5)
    result = clean(model, 1.0, noise_multiplier=0.5)
    torch.testing.assert_close(result.tensors, still.tensors, rtol=0, atol=0)
    assert not math.isfinite(result.update_norm)
    assert clean(model, math.inf).tensors["b"] is model["b"]  # without privacy the receiver rejects it


def test_an_update_that_overflows_float32_becomes_zero() -> None:
    result = clean({"x": torch.tensor([3e38])}, 1.0, start={"x": torch.tensor([-3e38])})
    assert result.tensors["x"].tolist() == torch.tensor([-3e38]).tolist()


def test_noise_without_clipping_is_rejected() -> None:
    with pytest.raises(ValueError, match="finite clip_norm"):
        clean(moved(1.0), math.inf, noise_multiplier=0.5)


# ---------------------------------------------------------------- noise


@pytest.mark.parametrize("length", [0.0, 1.0])
def test_noise_is_added_to_short_updates_too(length) -> None:
    result = clean(moved(length), clip_norm=2.0, noise_multiplier=1.0)
    assert all((tensor != 0).all() for tensor in noise_of(result, moved(length)).values())


def test_noise_is_added_after_clipping() -> None:
    """The noise of two different updates differs, so that their difference does not cancel it."""
    alone = noise_of(clean(START, clip_norm=2.0, noise_multiplier=0.001))
    result = noise_of(clean(moved(100.0), clip_norm=2.0, noise_multiplier=0.001), moved(2.0))
    for name, noise in result.items():
        assert (noise != alone[name]).all()
        assert noise.abs().max() < 8 * 0.002


def test_the_same_update_has_the_same_noise_and_the_next_one_independent_noise() -> None:
    zero = {"x": torch.zeros(2000)}
    noises = [clean({"x": zero["x"] + shift}, 1.0, 1.0, start=zero).tensors["x"] for shift in (0.0, 0.0, 1e-20)]
    assert torch.equal(noises[0], noises[1])
    assert abs(torch.corrcoef(torch.stack(noises[1:]))[0, 1]) < 5 * 2000**-0.5


def test_noise_below_the_precision_of_the_grid_is_rejected() -> None:
    with pytest.raises(ValueError, match="noise_multiplier is 0.0001: it must be 0 or at least 0.001"):
        clean(moved(1.0), 1.0, noise_multiplier=1e-4)


def test_the_noised_update_lies_on_the_grid() -> None:
    """Its last bits are those of the grid, whatever the update was."""
    zero = {"x": torch.zeros(1000, dtype=torch.float64)}
    model = {"x": torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}
    sent = clean(model, 1.0, 1.0, start=zero).tensors["x"] * 2**40 - 0.5  # in steps of the grid
    assert torch.equal(sent, sent.round())


@pytest.mark.parametrize(("clip_norm", "noise_multiplier"), [(2.0, 0.25), (0.1, 3.0)])
def test_the_moments_of_the_noise_in_every_coordinate(clip_norm, noise_multiplier) -> None:
    num_draws, key = 2000, NoiseKey(bytes(32))
    zero = {"a": torch.zeros(2, 2), "b": torch.zeros(3)}
    draws = [
        sanitise(zero, zero, clip_norm=clip_norm, noise_multiplier=noise_multiplier, stream=key.stream_for(draw))
        for draw in range(num_draws)
    ]
    rows = torch.stack([torch.cat([t.flatten() for t in sanitised.tensors.values()]) for sanitised in draws]).double()
    rows /= clip_norm * noise_multiplier  # should be standard normal, and independent
    # five standard errors: over 7 + 7 + 21 values a correct sampler fails once in 50,000 seeds
    assert rows.mean(0).abs().max() < 5 * num_draws**-0.5
    assert (rows.var(0) - 1).abs().max() < 5 * (2 / num_draws) ** 0.5
    correlations = torch.corrcoef(rows.T).triu(diagonal=1)
    assert correlations.abs().max() < 5 * num_draws**-0.5


def test_the_noise_is_gaussian() -> None:
    zero = {"a": torch.zeros(100_000)}
    draws = clean(zero, clip_norm=1.0, noise_multiplier=1.0, start=zero).tensors["a"].double()
    within = [(draws.abs() < width).double().mean().item() for width in (1.0, 2.0, 3.0)]
    assert within == pytest.approx([0.6827, 0.9545, 0.9973], abs=0.008)
    assert (draws**4).mean().item() == pytest.approx(3.0, abs=5 * (96 / 100_000) ** 0.5)


def test_same_purpose_same_noise() -> None:
    first, second = (clean(moved(1.0), 2.0, 1.0, seed=7).tensors for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_different_purposes_give_different_noise_everywhere() -> None:
    first, second = (clean(moved(1.0), 2.0, 1.0, seed=seed).tensors for seed in (7, 8))
    assert all((first[name] != second[name]).all() for name in first)


def test_noise_uses_no_global_generator() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    clean(moved(1.0), clip_norm=2.0, noise_multiplier=1.0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("noise_multiplier", [0.0, 1.0])
def test_half_precision_is_clipped_and_noised_in_float32(noise_multiplier) -> None:
    generator = torch.Generator().manual_seed(0)
    half = {"a": torch.randn(1000, generator=generator).bfloat16()}
    zero = {"a": torch.zeros(1000, dtype=torch.bfloat16)}
    wide = clean({"a": half["a"].float()}, 1.0, noise_multiplier, start={"a": zero["a"].float()}).tensors["a"]
    narrow = clean(half, 1.0, noise_multiplier, start=zero).tensors["a"]
    assert narrow.dtype == torch.bfloat16
    assert torch.equal(narrow, wide.bfloat16())


def test_the_norm_before_clipping_is_returned_without_noise() -> None:
    assert clean(moved(10.0), 2.0, 5.0).update_norm == pytest.approx(norm(subtract(moved(10.0), START)))
