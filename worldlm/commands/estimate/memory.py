"""What a world holds in memory and on disk. Activations and text are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from worldlm.callbacks import Averaging, Compression, FedAMP, ResidualExchange
from worldlm.callbacks.averaging import find_optimizer
from worldlm.commands.estimate.messages import MessageSizes
from worldlm.distributed.fsdp import blocks
from worldlm.federation.parameters import num_bytes
from worldlm.rounds import RoundCallback
from worldlm.topology import Node, Topology

_GRADIENT, _MESSAGES = "gradient", "messages and averages"
_AT_WORK = "inner optimizer at work"

_MOMENTS = 2
"""Tensors as large as the model that AdamW keeps."""


def kept_by(node: Node, sizes: MessageSizes, callbacks: Sequence[RoundCallback], *, sends: bool) -> dict[str, int]:
    """Tell the bytes that a node keeps from round to round, which are those of its part of a checkpoint.

    Args:
        node: The node.
        sizes: Sizes of the model's parts.
        callbacks: The pieces of the method.
        sends: Whether it uploads: it has a parent, and does not just listen.
    """
    children = [child for child in node.children if not child.listens]
    kept = {
        "weights": sizes.whole,
        "inner optimizers": _MOMENTS * sizes.whole if node.keeps_moments else 0,
        "outer optimizers": 0,
        "what parents keep of children": 0,
        "errors of rounding": sizes.model if sends and any(map(_feeds_back, callbacks)) else 0,
    }
    for callback in callbacks if children else ():
        if isinstance(callback, Averaging):
            of_parts = sum(sizes.parts[part] for part in callback.parts)
            own = node.settings.outer_optimizer
            name, arguments = (own.name, own.arguments) if own else callback.default
            hashable = tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in arguments.items())
            kept["outer optimizers"] += round(_outer_copies(name, hashable) * of_parts)
        if isinstance(callback, ResidualExchange):
            kept["what parents keep of children"] += len(children) * sizes.parts["keys"]
        if isinstance(callback, FedAMP):
            kept["what parents keep of children"] += (len(children) + node.fits) * sizes.whole
    return kept


def _feeds_back(callback: RoundCallback) -> bool:
    return isinstance(callback, Compression) and callback.up != "none" and callback.error_feedback


@cache
def _outer_copies(optimizer: str, arguments: tuple[tuple[str, Any], ...]) -> float:
    """Return how many tensors as large as the parameters an outer optimizer keeps, by letting it step once."""
    parameter = torch.nn.Parameter(torch.zeros(1024))
    parameter.grad = torch.zeros(1024)
    outer = find_optimizer(optimizer, dict(arguments))([parameter], **dict(arguments))
    outer.step()
    return (
        sum(value.numel() for value in outer.state[parameter].values() if torch.is_tensor(value) and value.dim()) / 1024
    )


def of_one_process(topology: Topology, sizes: MessageSizes, callbacks: Sequence[RoundCallback]) -> dict[str, int]:
    """Tell the bytes of memory of one process that runs the whole world on a CPU, by what they are for."""
    total: Counter[str] = Counter()
    waiting: Counter[int] = Counter()  # by level: one federation of a level is open at a time
    for depth, node in with_depth(topology.root):
        total.update(kept_by(node, sizes, callbacks, sends=depth > 0 and not node.listens))
        waiting[depth] = max(waiting[depth], _in_the_open(node, sizes))
    total[_GRADIENT] = sizes.whole
    anew = any(node.fits and not node.keeps_moments for node in topology.nodes.values())
    total[_AT_WORK] = _MOMENTS * sizes.whole if anew else 0
    total["common first keys and values"] = sizes.parts["keys"] + sizes.parts["values"]
    total[_MESSAGES] = sum(waiting.values()) + sizes.model
    return {name: size for name, size in total.items() if size}


def of_checkpoint(process_bytes: Mapping[str, int]) -> int:
    """Return the bytes of a checkpoint of the whole world: what its process keeps from round to round."""
    return sum(size for use, size in process_bytes.items() if use not in (_GRADIENT, _AT_WORK, _MESSAGES))


def _in_the_open(node: Node, sizes: MessageSizes) -> int:
    """Return the bytes that a federation takes while it is open: sanitised uploads, for others are the sender's own
    tensors, and the model that its children receive if it trains itself."""
    private = sum(child.settings.privacy is not None and not child.listens for child in node.children)
    return private * sizes.model + (sizes.whole if node.fits and node.children else 0)


def of_one_machine(node: Node, sizes: MessageSizes, callbacks: Sequence[RoundCallback], *, sends: bool) -> int:
    """Return the bytes of memory of one node that has a machine of its own: what it keeps, a gradient, messages."""
    kept = sum(kept_by(node, sizes, callbacks, sends=sends).values()) + sizes.parts["keys"] + sizes.parts["values"]
    gradient = sizes.whole if node.fits else 0
    at_work = _MOMENTS * sizes.whole if node.fits and not node.keeps_moments else 0
    uploads = sum(not child.listens for child in node.children) * sizes.model
    start_and_mean = (sizes.whole if node.fits else 0) + sizes.model if node.children else 0
    sanitised = sizes.model if node.settings.privacy is not None else 0
    return kept + gradient + at_work + sizes.model + uploads + start_and_mean + sanitised  # one more: the download


@dataclass(frozen=True, slots=True)
class Device:
    """Bytes of memory of a device that trains a node, alone or with others."""

    kept: int
    """Weights, gradient and moments, or its slices of them."""
    gathered: int
    """What it gathers of the others' slices within a step, at most."""
    num_slices: int
    """Devices that have a slice of each tensor; 1: it holds all."""


def of_device(module: nn.Module, num_slices: int) -> Device:
    """Tell the memory of a device that trains a node: two blocks are gathered at a time, and what is in no block."""
    whole, of_blocks = _size(module), [_size(one) for one in blocks(module)]
    kept = -(-(2 + _MOMENTS) * whole // num_slices)
    gathered = 2 * max(of_blocks, default=0) + whole - sum(of_blocks)
    return Device(kept, gathered if num_slices > 1 else 0, num_slices)


def _size(module: nn.Module) -> int:
    return num_bytes(dict(module.named_parameters()))


def with_depth(node: Node, depth: int = 0) -> Iterator[tuple[int, Node]]:
    """Yield a node and all below it, parents first, each with its level, from 0."""
    yield depth, node
    for child in node.children:
        yield from with_depth(child, depth + 1)
