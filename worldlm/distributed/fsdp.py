"""Sharding the live module: every device of a team holds a shard of each tensor, by torch's FSDP2 (`fully_shard`).

Waiting nodes are whole, in host memory. A device copies its own shards from there without communication. To save a
node, the devices gather one tensor at a time. The state of an optimizer is offloaded as shards, and gathered to be
saved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

_SLICE, _SHAPE = "slice", "of_shape"

# ---------------------------------------------------------------------- modules


def shard_(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a module's parameters over a team, in place: one group for every block, and one for the rest.

    A block is an element of an outermost `nn.ModuleList`. A group is gathered when its forward or backward pass begins
    and freed when it ends, so that between steps all parameters are shards.

    Args:
        module: Whole, in host memory. Its groups are moved to the device one by one.
        mesh: The team, in one dimension.

    Raises:
        ValueError: If the module is sharded already, or a parameter belongs to no group or to several.
    """
    if any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        raise ValueError("an earlier fit sharded the module over devices (fully_shard): build a new module")
    inner = list(blocks(module))
    groups = [(block, _ids(block.parameters())) for block in inner]
    groups += [(child, _ids(_outside_blocks(child, inner))) for child in module.children() if child not in inner]
    num_groups = Counter(identity for _, group in groups for identity in group)
    for name, parameter in module.named_parameters():
        if (number := num_groups[id(parameter)]) != 1:
            reason = "belongs to the module itself" if not number else f"is shared by {number} blocks or parts"
            raise ValueError(f"fully_shard: the parameter {name} {reason}; each must belong to one part of the module")
    for part, group in groups:
        if group:
            fully_shard(part, mesh=mesh, reshard_after_forward=True)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks of a module: the elements of its outermost `nn.ModuleList`.

    The devices gather one block after the other.
    """
    for child in module.children():
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield child
        else:
            yield from blocks(child)


def _outside_blocks(module: nn.Module, inner: list[nn.Module]) -> Iterator[nn.Parameter]:
    """Yield the parameters of a module that are not in its blocks."""
    yield from module.parameters(recurse=False)
    for child in module.children():
        if child not in inner:
            yield from _outside_blocks(child, inner)


def _ids(parameters: Iterable[nn.Parameter]) -> set[int]:
    return {id(parameter) for parameter in parameters}


def full_state_dict(module: nn.Module) -> dict[str, Any]:
    """Return a module's whole state dict in host memory; tied entries share a tensor.

    All processes of a team call it together.
    """
    state = module.state_dict(keep_vars=True)
    whole = {id(value): full_tensor_of(value).cpu() for value in state.values() if isinstance(value, DTensor)}
    return {name: whole.get(id(value), value) for name, value in state.items()}


# ---------------------------------------------------------------------- tensors


def local_part(tensor: Tensor) -> Tensor:
    """Return this device's shard of a tensor, which may have no rows, or the whole tensor; not copied."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_shard(whole: Tensor, like: Tensor) -> Tensor:
    """Return the part of a whole tensor that matches this device's shard of `like`; not copied."""
    if not isinstance(like, DTensor):
        return whole
    shards, rank = whole.chunk(like.device_mesh.size()), like.device_mesh.get_local_rank()
    return shards[rank] if rank < len(shards) else whole[:0]


@torch.no_grad()
def full_tensor_of(tensor: Tensor) -> Tensor:
    """Return the whole tensor, on the device of its shards. If it is sharded, all processes of a team call this."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()


# ---------------------------------------------------------------------- optimizer states


def offload(value: Any) -> Any:
    """Return a value of an optimizer's state in host memory. A sharded tensor becomes its shard and the whole shape."""
    if isinstance(value, DTensor):
        return {_SLICE: value.to_local().cpu(), _SHAPE: list(value.shape)}
    return value.cpu() if isinstance(value, Tensor) else value


def shard_optimizer_state(state: dict[str, Any], parameters: list[Tensor]) -> dict[str, Any]:
    """Return an optimizer's state dict, saved whole or offloaded, sharded as its parameters are."""
    return {
        **state,
        "state": {
            number: {name: _shard_value(value, parameters[number]) for name, value in values.items()}
            for number, values in state["state"].items()
        },
    }


def _shard_value(value: Any, like: Tensor) -> Any:
    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        return {_SLICE: local_shard(value, like).clone(), _SHAPE: list(like.shape)}
    return value


def shape_of(value: Any) -> torch.Size:
    """Return the shape of a tensor, or the whole shape of an offloaded shard."""
    return torch.Size(value[_SHAPE] if _is_shard(value) else value.shape)


def onload(value: Any, like: Tensor, device: torch.device) -> Any:
    """Undo `offload`, for a parameter on a device."""
    if _is_shard(value):
        assert isinstance(like, DTensor), "shards belong to parameters that are sharded"
        return _joined(value, like.device_mesh, device)
    return value.to(device) if isinstance(value, Tensor) else value


def unshard(nest: Any, mesh: DeviceMesh, device: torch.device) -> Any:
    """Return nested containers with every sharded value whole, in host memory. All processes of a team call it."""
    if _is_shard(nest):
        nest = _joined(nest, mesh, device)
    if isinstance(nest, DTensor):
        return full_tensor_of(nest).cpu()
    if isinstance(nest, dict):
        return {key: unshard(value, mesh, device) for key, value in nest.items()}
    return [unshard(value, mesh, device) for value in nest] if isinstance(nest, list) else nest


def _is_shard(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and _SLICE in value


def _joined(value: dict[str, Any], mesh: DeviceMesh, device: torch.device) -> DTensor:
    shape = torch.Size(value[_SHAPE])
    stride = torch.empty(shape, device="meta").stride()
    local = value[_SLICE].to(device)
    return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)
