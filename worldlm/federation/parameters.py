"""Named tensors, and the three parts they are split into."""

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Part: TypeAlias = Literal["backbone", "keys", "values"]
Tensors: TypeAlias = dict[str, Tensor]

PARTS: tuple[Part, ...] = ("backbone", "keys", "values")


def clone(tensors: Mapping[str, Tensor]) -> Tensors:
    """Copy tensors into memory of their own, detached from any graph."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def copy_(target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    """Overwrite, in place, the tensors of `target` that `source` names.

    Raises:
        KeyError: If `source` names one that `target` does not hold.
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
    squares = (torch.linalg.vector_norm(t, dtype=torch.float64) ** 2 for t in tensors.values())
    return float(sum(squares, torch.zeros((), dtype=torch.float64)).sqrt())


def num_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the payload of the tensors in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
