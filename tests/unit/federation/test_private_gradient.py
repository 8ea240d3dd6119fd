"""The gradient of DP-SGD, against one example at a time."""

from __future__ import annotations

import math

import pytest
import torch

from worldlm.federation.noise_key import NoiseKey
from worldlm.federation.private_gradient import private_gradient

KEY = NoiseKey(bytes(32))


def gradient(samples, clip_norm=1.0, noise_multiplier=0.0, expected_batch_size=2.0, purpose=0):
    return private_gradient(
        samples,
        clip_norm=clip_norm,
        noise_multiplier=noise_multiplier,
        expected_batch_size=expected_batch_size,
        stream=KEY.stream_for(purpose),
    )


def random_samples(batch: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return {
        name: scale * torch.randn(batch, *shape, generator=generator)
        for name, shape in {"w": (3, 2), "b": (4,)}.items()
    }


def test_the_gradient_of_a_hand_computed_batch() -> None:
    """Lengths 5 and 0.5; the first is clipped to 1."""
    samples = {"x": torch.tensor([[3.0], [0.3]]), "y": torch.tensor([[4.0], [0.4]])}
    result = gradient(samples)
    assert result["x"].tolist() == pytest.approx([(0.6 + 0.3) / 2], rel=2e-5)
    assert result["y"].tolist() == pytest.approx([(0.8 + 0.4) / 2], rel=2e-5)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_it_is_the_sum_of_single_examples(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldlm.federation.private_gradient._CHUNK", 12)  # a few rows at a time
    samples = random_samples(batch)
    single = [gradient({name: rows[i : i + 1] for name, rows in samples.items()}) for i in range(batch)]
    for name, value in gradient(samples).items():
        torch.testing.assert_close(value, sum(one[name] for one in single), rtol=1e-6, atol=1e-7)


def test_one_example_changes_the_sum_by_at_most_the_bound() -> None:
    """Also where float32 would round: a thousand large examples, and one more."""
    samples = random_samples(1001, scale=1e4)
    without = {name: rows[:-1] for name, rows in samples.items()}
    sums = [
        {
            n: v.double()
            for n, v in gradient({k: r.double() for k, r in s.items()}, clip_norm=3.0, expected_batch_size=1.0).items()
        }
        for s in (samples, without)
    ]
    change = math.sqrt(sum(float((sums[0][name] - sums[1][name]).square().sum()) for name in samples))
    assert 3.0 * (1 - 1e-4) < change <= 3.0 * (1 - 2**-17)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_example_that_is_not_finite_counts_as_zero(bad: float) -> None:
    samples = random_samples(3)
    expected = gradient({name: rows[[0, 2]] for name, rows in samples.items()})
    samples["w"][1, 0, 0] = bad
    for name, value in gradient(samples).items():
        assert torch.equal(value, expected[name])


def test_an_empty_batch_gives_noise_alone() -> None:
    empty = {name: rows[:0] for name, rows in random_samples(1).items()}
    assert all((value == 0).all() for value in gradient(empty).values())
    big = {"w": torch.zeros(0, 200, 100)}
    noise = gradient(big, clip_norm=0.5, noise_multiplier=2.0, expected_batch_size=4.0)["w"]
    assert noise.std() == pytest.approx(2.0 * 0.5 / 4, rel=0.02)


def test_noise_depends_on_the_step_and_on_the_batch() -> None:
    samples = random_samples(2)
    noises = [gradient(samples, noise_multiplier=1.0, purpose=p)["b"] - gradient(samples)["b"] for p in (0, 0, 1)]
    assert torch.equal(noises[0], noises[1])
    assert not torch.allclose(noises[0], noises[2], atol=1e-2)
    one = {name: rows[:1] for name, rows in samples.items()}
    other = gradient(one, noise_multiplier=1.0)["b"] - gradient(one)["b"]
    assert not torch.allclose(noises[0], other, atol=1e-2)
