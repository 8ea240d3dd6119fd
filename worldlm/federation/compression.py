"""Compression of tensors to bfloat16, or to int8 with a scale per block, with unbiased stochastic rounding.

The encoded tensors are named tensors again, so that they are counted, sent and saved like any others. A bfloat16 tensor
has the name of the original. An int8 tensor has its name and shape, and beside it float32 scales, one per block of 256
values in memory order. The types determine how they are decoded.

Blocks were compared with rows on updates of nodes of the recipe `multilingual`, whose rows mostly have 96 values.
Blocks of 256 have 1.34 to 1.45 times the squared error of rows, and 1.6 instead of 3.8 per cent of additional bytes.
This is the same accuracy per byte within 0.1 bit per value. Blocks of 128 or 512 are no better per byte, and a block
does not grow with the width of the model.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from worldlm.federation.parameters import Tensors

Encoding: TypeAlias = Literal["none", "bf16", "int8"]

BLOCK = 256
"""Values that share a scale."""

_SCALES = "/scales"  # no parameter's name has a slash


def encode(tensors: Mapping[str, Tensor], encoding: Encoding, generator: Generator) -> Tensors:
    """Encode tensors; every value is rounded to one of its two neighbours, without bias.

    An int8 block with a value that is not finite is decoded as NaN; bfloat16 preserves such values.

    Args:
        tensors: By name, of any floating type; read as float32.
        encoding: bf16 takes 2 bytes per value, with steps of at most 2^-7 of the value. int8 takes 1 byte per value and
            4 per block, with steps of 1/127 of the block's largest value. none changes nothing.
        generator: Random generator of the rounding, on the CPU.

    Returns:
        Encoded tensors, for `decode`; with none, the tensors themselves.
    """
    encoded: Tensors = {}
    for name, tensor in tensors.items():
        if encoding == "none":
            encoded[name] = tensor
        elif encoding == "bf16":
            encoded[name] = _to_bf16(tensor.float(), generator)
        else:
            encoded[name], encoded[name + _SCALES] = _to_int8(tensor.float(), generator)
    return encoded


def encoded_bytes(tensors: Iterable[Tensor], encoding: Encoding) -> int:
    """Return the size in bytes of encoded tensors, without encoding them.

    Args:
        tensors: Only their shapes and types are used.
        encoding: As in `encode`.
    """
    return sum(_encoded_bytes(tensor.numel(), tensor.element_size(), encoding) for tensor in tensors)


def _encoded_bytes(num_values: int, value_bytes: int, encoding: Encoding) -> int:
    scales = 4 * -(-num_values // BLOCK)
    return {"none": value_bytes * num_values, "bf16": 2 * num_values, "int8": num_values + scales}[encoding]


def decode(encoded: Mapping[str, Tensor]) -> Tensors:
    """Reverse `encode`, up to the rounding.

    Args:
        encoded: The result of `encode`.

    Returns:
        float32 tensors, by name.
    """
    return {
        name: _from_int8(tensor, encoded[name + _SCALES]) if tensor.dtype == torch.int8 else tensor.float()
        for name, tensor in encoded.items()
        if not name.endswith(_SCALES)
    }


@torch.no_grad()
def encode_with_feedback(
    update: Mapping[str, Tensor], error: Mapping[str, Tensor], encoding: Encoding, generator: Generator
) -> tuple[Tensors, Tensors]:
    """Encode an update plus the rounding error of earlier updates (error feedback, arXiv 1901.09847, algorithm 2).

    The sum of all decoded updates then equals the sum of all updates, except for the returned error.

    Args:
        update: The update, float32 by name.
        error: The error that the previous call returned; a missing name has no error.
        encoding: As in `encode`.
        generator: As in `encode`.

    Returns:
        The encoded tensors, and the new error. It is 0 where a value was not finite, so that later updates are finite.
    """
    corrected = {name: tensor + error[name] if name in error else tensor for name, tensor in update.items()}
    encoded = encode(corrected, encoding, generator)
    new_error = {name: corrected[name] - decoded for name, decoded in decode(encoded).items()}
    return encoded, {name: tensor.nan_to_num_(0.0, 0.0, 0.0) for name, tensor in new_error.items()}


@torch.no_grad()
def difference(tensors: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> Tensors:
    """Return `tensors - known` in float32, `known` being the tensors of the receiver; a missing name counts as 0."""
    return {
        name: tensor.float() - known[name].float() if name in known else tensor.float()
        for name, tensor in tensors.items()
    }


@torch.no_grad()
def restore(update: Mapping[str, Tensor], known: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Tensors:
    """Reverse `difference`, in the types and the order of `like`, so that later sums have a fixed order."""
    return {
        name: (known[name].float() + update[name] if name in known else update[name]).to(reference.dtype)
        for name, reference in like.items()
        if name in update
    }


def _to_bf16(tensor: Tensor, generator: Generator) -> Tensor:
    """Round up with a probability proportional to the 16 lower bits, by adding 16 random bits and truncating."""
    noise = torch.randint(1 << 16, tensor.shape, generator=generator, dtype=torch.int32).to(tensor.device)
    bits = noise.add_(tensor.contiguous().view(torch.int32)).bitwise_and_(-1 << 16)
    return torch.where(tensor.isfinite(), bits.view(torch.float32), tensor).to(torch.bfloat16)


def _to_int8(tensor: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    num_blocks = -(-tensor.numel() // BLOCK)
    blocks = pad(tensor.flatten(), (0, num_blocks * BLOCK - tensor.numel())).view(num_blocks, BLOCK)
    scales = blocks.abs().amax(dim=1) / 127
    steps = blocks / scales[:, None]
    lower = steps.floor()
    noise = torch.rand(blocks.shape, generator=generator).to(tensor.device)
    rounded = lower + (noise < steps.sub_(lower))
    payload = (
        rounded.clamp_(-127, 127).nan_to_num_(0.0).to(torch.int8)
    )  # NaN comes from a scale that is 0 or not finite
    return payload.flatten()[: tensor.numel()].view(tensor.shape), scales


def _from_int8(payload: Tensor, scales: Tensor) -> Tensor:
    flat = payload.flatten().float()
    return flat.mul_(scales.repeat_interleave(BLOCK)[: flat.numel()]).view(payload.shape)
