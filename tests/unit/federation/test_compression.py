"""Stochastic rounding: exact for representable values, otherwise unbiased and within a step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor

from worldlm.federation.compression import (
    BLOCK,
    Encoding,
    decode,
    difference,
    encode,
    encode_with_feedback,
    restore,
)
from worldlm.federation.parameters import num_bytes

INF, NAN = float("inf"), float("nan")


def generator(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def through(tensor: Tensor, encoding: Encoding, seed: int = 0) -> Tensor:
    return decode(encode({"x": tensor}, encoding, generator(seed)))["x"]


def test_int8_by_hand() -> None:
    """Two blocks, the second with one value: 127 steps of 0.5, of 2 and, downward, of 1."""
    first = torch.zeros(BLOCK)
    first[:4] = torch.tensor([63.5, -0.5, 1.0, -63.5])
    encoded = encode({"x": torch.cat([first, torch.tensor([254.0])])}, "int8", generator())
    assert list(encoded) == ["x", "x/scales"]
    assert encoded["x"].dtype == torch.int8
    assert encoded["x"].tolist() == [127, -1, 2, -127, *[0] * (BLOCK - 4), 127]
    assert encoded["x/scales"].dtype == torch.float32
    assert encoded["x/scales"].tolist() == [0.5, 2.0]
    assert num_bytes(encoded) == BLOCK + 1 + 2 * 4
    assert decode(encoded)["x"].tolist() == [63.5, -0.5, 1.0, -63.5, *[0.0] * (BLOCK - 4), 254.0]


def test_bf16_by_hand() -> None:
    """1 + 2^-7 is the neighbour of 1; a value a quarter of the way is rounded up in a quarter of all cases."""
    exact = torch.tensor([[1.0, -1.0 - 2**-7], [0.0, 3e38]]).bfloat16().float()
    encoded = encode({"x": exact}, "bf16", generator())
    assert encoded["x"].dtype == torch.bfloat16
    assert num_bytes(encoded) == 8
    assert torch.equal(decode(encoded)["x"], exact)
    between = through(torch.full((40_000,), -1 - 2**-9), "bf16")
    assert set(between.tolist()) == {-1.0, -1.0 - 2**-7}
    assert (between == -1.0 - 2**-7).float().mean() == pytest.approx(1 / 4, abs=5 * math.sqrt(3 / 16 / 40_000))


def test_none_is_the_tensors_themselves() -> None:
    tensors = {"x": torch.ones(3)}
    assert encode(tensors, "none", generator())["x"] is tensors["x"]


@pytest.mark.parametrize("encoding", ["bf16", "int8"])
def test_shapes_are_preserved(encoding: Encoding) -> None:
    for shape in ((), (0,), (5,), (2, BLOCK), (3, 7, 50)):
        tensor = torch.zeros(shape)
        assert torch.equal(through(tensor, encoding), tensor)


def test_tensors_that_are_not_contiguous() -> None:
    tensor = torch.arange(-6.0, 6.0).view(3, 4).t()
    assert torch.equal(through(tensor, "bf16"), tensor)
    torch.testing.assert_close(through(tensor, "int8"), tensor, rtol=0, atol=6 / 127)


@pytest.mark.parametrize("encoding", ["bf16", "int8"])
def test_rounding_is_unbiased_and_within_one_step(encoding: Encoding) -> None:
    """The mean over 4,000 roundings of every value is within five of its standard deviations."""
    values = torch.randn(BLOCK, generator=generator(1)) * torch.logspace(-3, 0, BLOCK)
    step = values.abs().max() / 127 if encoding == "int8" else 2.0 ** (values.abs().log2().floor() - 7)
    drawn = torch.stack([through(values, encoding, seed) for seed in range(4_000)])
    errors = (drawn - values).double()
    assert bool((errors.abs() < step * (1 + 1e-5)).all())
    assert bool((errors.mean(0).abs() <= 5 * step / 2 / math.sqrt(4_000)).all())  # a deviation is half a step at most
    assert bool((errors.std(0) > 0.3 * step).any())  # by chance indeed


def test_rounding_depends_only_on_the_seed() -> None:
    values = torch.randn(1000, generator=generator(1))
    for encoding in ("bf16", "int8"):
        assert torch.equal(through(values, encoding, 3), through(values, encoding, 3))
        assert not torch.equal(through(values, encoding, 3), through(values, encoding, 4))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_values_that_are_not_finite_are_preserved(value: float) -> None:
    values = torch.ones(2 * BLOCK)
    values[3] = value
    arrived = through(values, "int8")
    assert bool(arrived[:BLOCK].isnan().all())
    assert torch.equal(arrived[BLOCK:], values[BLOCK:])
    torch.testing.assert_close(through(values, "bf16"), values, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("encoding", ["bf16", "int8"])
def test_the_error_of_values_that_are_not_finite_is_zero(value: float, encoding: Encoding) -> None:
    update = {"x": torch.tensor([1.0, value])}
    encoded, error = encode_with_feedback(update, {}, encoding, generator())
    assert not decode(encoded)["x"][1].isfinite()
    assert bool(error["x"].isfinite().all())


def test_feedback_by_hand() -> None:
    """The largest value is 127 steps of 1: 0.25 is decoded as 0 or 1, and the sum of four with feedback as 0, 1 or
    2."""
    sums, error = torch.zeros(2), {}
    for seed in range(4):
        update = {"x": torch.tensor([127.0, 0.25])}
        encoded, error = encode_with_feedback(update, error, "int8", generator(seed))
        assert encoded["x/scales"].item() == 1.0
        sums += decode(encoded)["x"]
    assert torch.equal(sums + error["x"], torch.tensor([508.0, 1.0]))
    assert float(error["x"][1].abs()) < 1


def test_difference_and_back() -> None:
    tensors = {"a": torch.tensor([3.0, 5.0]).bfloat16(), "b": torch.tensor([1.0])}
    known = {"a": torch.tensor([1.0, 1.0]).bfloat16(), "c": torch.zeros(9)}
    result = difference(tensors, known)
    assert {name: tensor.dtype for name, tensor in result.items()} == {"a": torch.float32, "b": torch.float32}
    assert {name: tensor.tolist() for name, tensor in result.items()} == {"a": [2.0, 4.0], "b": [1.0]}
    back = restore(result, known, tensors)
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in tensors.items())
