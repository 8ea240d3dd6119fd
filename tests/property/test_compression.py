"""Properties of stochastic rounding, for any numbers."""

from __future__ import annotations

from typing import Literal

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from worldlm.federation.compression import BLOCK, decode, encode, encode_with_feedback

quick = settings(max_examples=40)
encodings = st.sampled_from(("bf16", "int8"))
Lossy = Literal["bf16", "int8"]


def values(seed: int, size: int, scale: float) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * scale


@quick
@given(st.integers(0, 2**32), st.integers(1, 3 * BLOCK), st.floats(1e-20, 1e20), encodings)
def test_every_value_is_rounded_to_a_neighbour(seed: int, size: int, scale: float, encoding: Lossy) -> None:
    tensor = values(seed, size, scale)
    encoded = encode({"x": tensor}, encoding, torch.Generator().manual_seed(seed))
    arrived = decode(encoded)["x"]
    assert arrived.shape == tensor.shape
    if encoding == "bf16":
        steps = tensor.double().abs() * 2**-7
    else:
        steps = encoded["x/scales"].repeat_interleave(BLOCK)[:size].double()
    assert bool(((arrived.double() - tensor.double()).abs() <= steps * (1 + 1e-5)).all())
    assert torch.equal(arrived.sign() * tensor.sign(), arrived.sign().abs())  # no value changes its side


@quick
@given(st.integers(0, 2**32), st.integers(1, 2 * BLOCK), st.integers(1, 6), encodings)
def test_with_feedback_the_decoded_sum_equals_the_sum_of_updates(
    seed: int, size: int, rounds: int, encoding: Lossy
) -> None:
    meant, arrived, error = torch.zeros(size), torch.zeros(size), {}
    for number in range(rounds):
        update = values(seed + number, size, 1.0)
        generator = torch.Generator().manual_seed(seed + number)
        encoded, error = encode_with_feedback({"x": update}, error, encoding, generator)
        meant += update
        arrived += decode(encoded)["x"]
    torch.testing.assert_close(arrived + error["x"], meant, rtol=1e-5, atol=1e-5)


@quick
@given(st.integers(0, 2**32), st.integers(1, 600), encodings)
def test_encoded_tensors_survive_a_file_bit_by_bit(seed: int, size: int, encoding: Lossy) -> None:
    encoded = encode({"a.b": values(seed, size, 1.0)}, encoding, torch.Generator().manual_seed(seed))
    again = load(save(encoded))
    assert torch.equal(decode(again)["a.b"], decode(encoded)["a.b"])
