"""Tensors in fewer bytes: bfloat16, or int8 with a scale per block, rounded up or down by chance, without bias.

What is encoded are named tensors again, so that their bytes are counted, and they are sent and saved, like any others:
bfloat16 under the tensor's own name; int8 in the tensor's shape under its own name, with its scales beside it, float32,
one per block of 256 values in memory order. Their types say how they are decoded.

Blocks rather than rows: on what nodes of the recipe `multilingual` learnt (rows of 96 values, most of them), blocks of
256 have 1.34 to 1.45 times the squared error of rows and 1.6 instead of 3.8 per cent of bytes on top, which is the same
accuracy per byte within 0.1 bit a value; blocks of 128 or 512 are no better per byte, and a block does not grow with
the width of the model.
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
    """Encode tensors, every value rounded to one of its two neighbours, in expectation to itself.

    An int8 block that holds a value that is not finite arrives as NaN; bfloat16 keeps such values as they are.

    Args:
        tensors: By name, of any floating type; read as float32.
        encoding: bf16, 2 bytes a value, with a step of at most 2^-7 of the value; int8, 1 byte a value and 4 a block,
            with a step of 1/127 of the block's largest; none.
        generator: Source of the rounding, on the CPU.

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
    """Return the bytes of tensors once they are encoded, without encoding them.

    Args:
        tensors: Only their shapes and types matter.
        encoding: As in `encode`.
    """
    return sum(_encoded_bytes(one.numel(), one.element_size(), encoding) for one in tensors)


def _encoded_bytes(num_values: int, value_bytes: int, encoding: Encoding) -> int:
    scales = 4 * -(-num_values // BLOCK)
    return {"none": value_bytes * num_values, "bf16": 2 * num_values, "int8": num_values + scales}[encoding]


def decode(encoded: Mapping[str, Tensor]) -> Tensors:
    """Undo `encode`, up to the rounding.

    Args:
        encoded: What `encode` returned.

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
    """Encode an update together with what rounding kept from arriving before (arXiv 1901.09847, algorithm 2).

    All that was decoded so far is then all that was meant, but for the error returned.

    Args:
        update: What is meant, float32 by name.
        error: What an earlier call returned; a name it does not hold has none.
        encoding: As in `encode`.
        generator: As in `encode`.

    Returns:
        The encoded tensors, and the new error: 0 where a value was not finite, so that it is not wrong for ever.
    """
    meant = {name: tensor + error[name] if name in error else tensor for name, tensor in update.items()}
    encoded = encode(meant, encoding, generator)
    left = {name: meant[name] - arrived for name, arrived in decode(encoded).items()}
    return encoded, {name: tensor.nan_to_num_(0.0, 0.0, 0.0) for name, tensor in left.items()}


@torch.no_grad()
def difference(tensors: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> Tensors:
    """Return, in float32, what tensors are beyond what the other side knows: all of it where that is nothing."""
    return {
        name: tensor.float() - known[name].float() if name in known else tensor.float()
        for name, tensor in tensors.items()
    }


@torch.no_grad()
def restore(update: Mapping[str, Tensor], known: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Tensors:
    """Undo `difference`, in the types and the order of `like`: an order that was lost on the way changes no sum."""
    return {
        name: (known[name].float() + update[name] if name in known else update[name]).to(own.dtype)
        for name, own in like.items()
        if name in update
    }


def _to_bf16(tensor: Tensor, generator: Generator) -> Tensor:
    """Round the 16 lower bits up with the probability of their value, which is what adding 16 random bits does."""
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
    payload = rounded.clamp_(-127, 127).nan_to_num_(0.0).to(torch.int8)  # NaN: by a scale that is 0 or not finite
    return payload.flatten()[: tensor.numel()].view(tensor.shape), scales


def _from_int8(payload: Tensor, scales: Tensor) -> Tensor:
    flat = payload.flatten().float()
    return flat.mul_(scales.repeat_interleave(BLOCK)[: flat.numel()]).view(payload.shape)
