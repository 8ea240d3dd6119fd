"""Weights of personalised mixtures, compared with numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from worldlm.federation.mixture import mixture_weights


def models(**values: tuple[float, float]) -> dict[str, dict[str, torch.Tensor]]:
    return {name: {"p": torch.tensor([float(x)]), "q": torch.tensor([[float(y)]])} for name, (x, y) in values.items()}


def test_by_hand() -> None:
    # squared distances: a-b 1, a-c 4, b-c 4 + 1; their mean is 10 / 3
    weights = mixture_weights(models(a=(0, 0), b=(1, 0), c=(0, 2)), self_weight=0.25, sigma=2.0)
    near, far, farther = (math.exp(-square / (10 / 3) / 2.0) for square in (1, 4, 5))
    expected = {
        "a": {"a": 0.25, "b": 0.75 * near / (near + far), "c": 0.75 * far / (near + far)},
        "b": {"a": 0.75 * near / (near + farther), "b": 0.25, "c": 0.75 * farther / (near + farther)},
        "c": {"a": 0.75 * far / (far + farther), "b": 0.75 * farther / (far + farther), "c": 0.25},
    }
    for name, row in expected.items():
        assert list(weights[name]) == ["a", "b", "c"]
        assert weights[name] == pytest.approx(row)


def test_the_weights_of_two_models_depend_only_on_the_self_weight() -> None:
    weights = mixture_weights(models(a=(0, 0), b=(5, 0)), self_weight=0.75, sigma=0.01)
    assert weights == {"a": {"a": 0.75, "b": 0.25}, "b": {"a": 0.25, "b": 0.75}}


def test_equal_models_have_equal_weights() -> None:
    weights = mixture_weights(models(a=(1, 1), b=(1, 1), c=(1, 1)), self_weight=0.5, sigma=1.0)
    assert weights["b"] == {"a": 0.25, "b": 0.5, "c": 0.25}


def test_a_single_model_has_the_weight_one() -> None:
    assert mixture_weights(models(a=(1, 2)), self_weight=0.25, sigma=1.0) == {"a": {"a": 1.0}}


def test_sigma_has_no_unit() -> None:
    small = models(a=(0, 0), b=(1, 0), c=(0, 2), d=(3, 3))
    large = models(a=(0, 0), b=(1024, 0), c=(0, 2048), d=(3072, 3072))
    small_weights, large_weights = (mixture_weights(world, self_weight=0.1, sigma=0.5) for world in (small, large))
    for name in small_weights:
        assert small_weights[name] == pytest.approx(large_weights[name])


def test_a_small_sigma_selects_the_nearest_and_a_large_sigma_averages() -> None:
    world = models(a=(0, 0), b=(1, 0), c=(0, 2))
    assert mixture_weights(world, self_weight=0.0, sigma=1e-9)["a"] == {"a": 0.0, "b": 1.0, "c": 0.0}
    assert mixture_weights(world, self_weight=0.0, sigma=1e9)["a"] == pytest.approx({"a": 0.0, "b": 0.5, "c": 0.5})
