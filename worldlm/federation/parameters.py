"""Named tensors, and the three parts of a model: backbone, keys and values."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Part: TypeAlias = Literal["backbone", "keys", "values"]
Tensors: TypeAlias = dict[str, Tensor]

PARTS: tuple[Part, ...] = ("backbone", "keys", "values")

CHUNK = 1 << 15
"""Coordinates of several models that are processed at a time, so that the results stay in the processor's cache."""

_CHUNK_ON_DEVICE = 1 << 24
"""The same on an accelerator, where each kernel launch has a fixed cost."""

_MAX_MODELS = 16
"""Largest number of models that are processed at a time, so that their chunks fit into the cache."""


def clone(tensors: Mapping[str, Tensor]) -> Tensors:
    """Copy tensors into new memory, detached from any graph."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def copy_(target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    """Overwrite, in place, the tensors of `target` that are in `source`.

    Raises:
        KeyError: If a name of `source` is not in `target`.
    """
    for name, tensor in source.items():
        target[name].copy_(tensor)


@torch.no_grad()
def subtract(minuend: Mapping[str, Tensor], subtrahend: Mapping[str, Tensor]) -> Tensors:
    """Return `minuend - subtrahend` for every name of `minuend`."""
    return {name: tensor - subtrahend[name] for name, tensor in minuend.items()}


@torch.no_grad()
def norm(tensors: Mapping[str, Tensor]) -> float:
    """Return the L2 norm of all tensors taken as one vector."""
    parts = (part for tensor in tensors.values() for part in chunks(tensor))  # each is converted to float64
    squares = (torch.linalg.vector_norm(part, dtype=torch.float64) ** 2 for part in parts)
    return float(sum(squares, torch.zeros((), dtype=torch.float64)).sqrt())


@torch.no_grad()
def is_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether all coordinates are finite; they are read twice only if their sum in float32 is not finite."""
    sums = [tensor.sum(dtype=torch.float32) for tensor in tensors.values()]
    if not sums or bool(torch.stack(sums).sum().isfinite()):
        return True
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def chunks(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return views of a tensor's coordinates, `chunk_size` at a time, in order."""
    return torch.split(tensor.reshape(-1), chunk_size(tensor))


def chunk_size(tensor: Tensor) -> int:
    """Return the largest number of coordinates of a tensor that are processed at a time."""
    return min(max(1, tensor.numel()), CHUNK if tensor.device.type == "cpu" else _CHUNK_ON_DEVICE)


def model_chunks(models: Sequence[Mapping[str, Tensor]], name: str) -> Iterator[slice]:
    """Yield slices of the models, in order; the tensors with this name in a slice take at most the memory of a model.

    If tensors are loaded on access, this limits how much of all models is in memory at a time.
    """
    size = sum(tensor.numel() for tensor in models[0].values())
    number = min(_MAX_MODELS, max(1, size // max(1, models[0][name].numel())))
    return (slice(i, i + number) for i in range(0, len(models), number))


@torch.no_grad()
def distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Return the L2 norm of `first - second`, for the names of `first`, all tensors taken as one vector.

    This equals `norm(subtract(first, second))`, except that it sums chunk by chunk and needs no third model in memory.
    """
    total = 0.0
    for name, tensor in first.items():
        changed = tensor.new_empty(chunk_size(tensor))
        for left, right in zip(chunks(tensor), chunks(second[name]), strict=True):
            torch.sub(left, right, out=changed[: len(left)])
            total += float(torch.linalg.vector_norm(changed[: len(left)], dtype=torch.float64)) ** 2
    return math.sqrt(total)


def num_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the size of the tensors in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Return a digest of named tensors, over their names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
