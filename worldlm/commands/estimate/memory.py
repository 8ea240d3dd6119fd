"""Memory and disk that a world takes, without activations and text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from worldlm.callbacks import AttentionAggregation, Averaging, ClusteredAveraging, Compression, Ditto, FedAMP
from worldlm.callbacks.averaging import checked_optimizer
from worldlm.commands.estimate.message_sizes import MessageSizes
from worldlm.distributed.fsdp import blocks
from worldlm.federation.parameters import num_bytes
from worldlm.rounds import RoundCallback
from worldlm.topology import Node, Topology

_GRADIENT, _MESSAGES = "gradient", "messages and averages"
_ACTIVE, _FROZEN = "active inner optimizer", "frozen model"

_MOMENTS = 2
"""Tensors of the model's size in the state of AdamW."""


def state_size(node: Node, sizes: MessageSizes, callbacks: Sequence[RoundCallback], *, sends: bool) -> dict[str, int]:
    """Return the bytes of a node's state between rounds, by use. A checkpoint has the same bytes.

    Args:
        node: The node.
        sizes: Sizes of the method's messages.
        callbacks: The callbacks of the method.
        sends: Whether the node uploads: it has a parent and does not only listen.
    """
    children = [child for child in node.children if not child.listens]
    state = {
        "weights": sizes.whole,
        "inner optimizers": _MOMENTS * sizes.whole if node.keeps_moments else 0,
        "outer optimizers": 0,
        "parents' state of children": 0,
        "rounding errors": sizes.model if sends and any(map(_feeds_back, callbacks)) else 0,
    }
    for callback in callbacks if children else ():
        if isinstance(callback, Averaging):
            averaged = sum(sizes.parts[part] for part in callback.parts)
            own = node.settings.outer_optimizer
            name, arguments = (own.name, own.arguments) if own else callback.default_optimizer
            hashable = tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in arguments.items())
            state["outer optimizers"] += round(_outer_copies(name, hashable) * averaged)
        if isinstance(callback, AttentionAggregation):
            pair = sizes.parts["keys"] + sizes.parts["values"]
            state["parents' state of children"] += (len(children) + node.fits) * pair + sizes.parts["keys"]
            state["parents' state of children"] += pair if sends else 0  # what came from above
        if isinstance(callback, FedAMP):
            state["parents' state of children"] += (len(children) + node.fits) * sizes.whole
        if isinstance(callback, ClusteredAveraging):  # at most: one model per cluster
            clustered = sum(sizes.parts[part] for part in callback.parts)
            state["parents' state of children"] += (len(children) + node.fits) * clustered
    return state


def _feeds_back(callback: RoundCallback) -> bool:
    return isinstance(callback, Compression) and callback.up != "none" and callback.error_feedback


@cache
def _outer_copies(optimizer: str, arguments: tuple[tuple[str, Any], ...]) -> float:
    """Return how many tensors of the parameters' size an outer optimizer has in its state, by a step of it."""
    parameter = torch.nn.Parameter(torch.zeros(1024))
    parameter.grad = torch.zeros(1024)
    outer = checked_optimizer(optimizer, dict(arguments))([parameter], **dict(arguments))
    outer.step()
    tensors = (value for value in outer.state[parameter].values() if torch.is_tensor(value) and value.dim())
    return sum(tensor.numel() for tensor in tensors) / 1024


def frozen_size(module: nn.Module) -> int:
    """Return the bytes of the frozen weights below a module's adapters, which exist once in a process."""
    return num_bytes({name: module.get_buffer(name) for name in getattr(module, "frozen", ())})


def process_memory(
    topology: Topology, sizes: MessageSizes, callbacks: Sequence[RoundCallback], frozen: int = 0
) -> dict[str, int]:
    """Return the memory of one process that runs the whole world on a CPU, in bytes by use.

    Args:
        topology: The tree.
        sizes: Sizes of the method's messages.
        callbacks: The callbacks of the method.
        frozen: Bytes of the frozen weights.
    """
    total: Counter[str] = Counter()
    open_: Counter[int] = Counter()  # by level: one federation of each level is in a sub-round at a time
    for depth, node in with_depth(topology.root):
        total.update(state_size(node, sizes, callbacks, sends=depth > 0 and not node.listens))
        open_[depth] = max(open_[depth], _subround_memory(node, sizes, callbacks))
    total[_GRADIENT] = sizes.whole
    resets = any(node.fits and not node.keeps_moments for node in topology.nodes.values())
    total[_ACTIVE] = _MOMENTS * sizes.whole if resets else 0
    total["initial keys and values"] = sizes.parts["keys"] + sizes.parts["values"]
    total[_FROZEN] = frozen
    total[_MESSAGES] = sum(open_.values()) + sizes.model
    return {name: size for name, size in total.items() if size}


def checkpoint_size(process_bytes: Mapping[str, int]) -> int:
    """Return the bytes of a checkpoint of the whole world, given the memory of its process."""
    return sum(size for use, size in process_bytes.items() if use not in (_GRADIENT, _ACTIVE, _FROZEN, _MESSAGES))


def _subround_memory(node: Node, sizes: MessageSizes, callbacks: Sequence[RoundCallback]) -> int:
    """Return the memory of a federation during a sub-round.

    Sanitised uploads are copies, and with `Ditto` all uploads of leaves; all others share the tensors of their senders.
    A federation that also trains has a copy of the model for its children.
    """
    has_two_models = any(isinstance(callback, Ditto) for callback in callbacks)
    senders = [child for child in node.children if not child.listens]
    copies = sum(child.settings.privacy is not None or (has_two_models and child.is_leaf) for child in senders)
    return copies * sizes.model + (sizes.whole if node.fits and node.children else 0)


def machine_memory(node: Node, sizes: MessageSizes, callbacks: Sequence[RoundCallback], *, sends: bool) -> int:
    """Return the memory of one node on a machine of its own, in bytes: its state, a gradient and messages."""
    state = sum(state_size(node, sizes, callbacks, sends=sends).values())
    initial_layers = sizes.parts["keys"] + sizes.parts["values"]
    gradient = sizes.whole if node.fits else 0
    active = _MOMENTS * sizes.whole if node.fits and not node.keeps_moments else 0
    uploads = sum(not child.listens for child in node.children) * sizes.model
    start_and_mean = (sizes.whole if node.fits else 0) + sizes.model if node.children else 0
    sanitised = sizes.model if node.settings.privacy is not None else 0
    download = sizes.model
    return state + initial_layers + gradient + active + download + uploads + start_and_mean + sanitised


@dataclass(frozen=True, slots=True)
class Device:
    """Memory of a device that trains a node, alone or with others, in bytes."""

    owned: int
    """Weights, gradient and moments, or the device's slices of them; and the whole frozen weights."""
    gathered: int
    """Slices of other devices that it gathers within a step, at most."""
    num_slices: int
    """Devices that share each tensor."""


def device_memory(module: nn.Module, num_slices: int) -> Device:
    """Return the memory of a device that trains a node. It gathers two blocks at a time, and the layers in no block."""
    whole, block_sizes = _size(module), [_size(block) for block in blocks(module)]
    owned = -(-(2 + _MOMENTS) * whole // num_slices) + frozen_size(module)
    gathered = 2 * max(block_sizes, default=0) + whole - sum(block_sizes)
    return Device(owned, gathered if num_slices > 1 else 0, num_slices)


def _size(module: nn.Module) -> int:
    return num_bytes(dict(module.named_parameters()))


def with_depth(node: Node, depth: int = 0) -> Iterator[tuple[int, Node]]:
    """Yield a node and all below it, parents first, each with its depth, from 0."""
    yield depth, node
    for child in node.children:
        yield from with_depth(child, depth + 1)
