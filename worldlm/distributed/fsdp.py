"""A live module in slices: every device of a team holds one of each tensor, by torch's FSDP2 (`fully_shard`).

Nodes that wait are whole, in host memory. A device copies its own slices from there, without a word to the others;
together they gather one tensor at a time to bring them home. What an optimizer keeps waits in slices, and is gathered
to be saved.
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
    """Divide a module's parameters over a team, in place: a group for every block, and one for what is left.

    A block is an element of an `nn.ModuleList`, an outermost one. A group is gathered when its forward or backward pass
    begins, and let go when it ends, so that between steps all parameters are slices.

    Args:
        module: Whole, in host memory; its groups pass over the device one by one.
        mesh: The team, in one dimension.

    Raises:
        ValueError: If it is divided already, or a parameter belongs to no group or to several.
    """
    if any(isinstance(one, DTensor) for one in module.parameters()):
        raise ValueError("the module was divided over devices by an earlier fit (fully_shard): build it anew")
    inner = list(blocks(module))
    groups = [(block, _ids(block.parameters())) for block in inner]
    groups += [(child, _ids(_beside(child, inner))) for child in module.children() if child not in inner]
    times = Counter(one for _, group in groups for one in group)
    for name, parameter in module.named_parameters():
        if (found := times[id(parameter)]) != 1:
            told = "is of the module itself" if not found else f"is shared by {found} blocks or parts"
            raise ValueError(f"fully_shard: the parameter {name} {told}; each must belong to one part of the module")
    for part, group in groups:
        if group:
            fully_shard(part, mesh=mesh, reshard_after_forward=True)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks of a module, which are gathered one after the other: elements of outermost `nn.ModuleList`s."""
    for child in module.children():
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield child
        else:
            yield from blocks(child)


def _beside(module: nn.Module, inner: list[nn.Module]) -> Iterator[nn.Parameter]:
    """Yield the parameters of a module that are not in its blocks."""
    yield from module.parameters(recurse=False)
    for child in module.children():
        if child not in inner:
            yield from _beside(child, inner)


def _ids(parameters: Iterable[nn.Parameter]) -> set[int]:
    return {id(one) for one in parameters}


def whole_state(module: nn.Module) -> dict[str, Any]:
    """Return a module's state dict, whole and in host memory; what is tied is one tensor. All of a team call it."""
    kept = module.state_dict(keep_vars=True)
    whole = {id(one): gathered(one).cpu() for one in kept.values() if isinstance(one, DTensor)}
    return {name: whole.get(id(one), one) for name, one in kept.items()}


# ---------------------------------------------------------------------- tensors


def here(tensor: Tensor) -> Tensor:
    """Return what this device holds of a tensor: its slice, which may have no rows, or all of it. Not copied."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def cut(whole: Tensor, like: Tensor) -> Tensor:
    """Return of a whole tensor, not copied, what this device holds of another of the same shape."""
    if not isinstance(like, DTensor):
        return whole
    slices, own = whole.chunk(like.device_mesh.size()), like.device_mesh.get_local_rank()
    return slices[own] if own < len(slices) else whole[:0]


@torch.no_grad()
def gathered(tensor: Tensor) -> Tensor:
    """Return a tensor whole, where its slices are; of one in slices, all of a team call it."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()


# ---------------------------------------------------------------------- what an optimizer keeps


def waiting(value: Any) -> Any:
    """Return a value of an optimizer's state as it waits in host memory: of a tensor in slices, its own with a note."""
    if isinstance(value, DTensor):
        return {_SLICE: value.to_local().cpu(), _SHAPE: list(value.shape)}
    return value.cpu() if isinstance(value, Tensor) else value


def cut_state(state: dict[str, Any], parameters: list[Tensor]) -> dict[str, Any]:
    """Return an optimizer's state dict, whole as it was saved or waiting, in slices as its parameters are."""
    return {
        **state,
        "state": {
            number: {name: _cut_value(value, parameters[number]) for name, value in one.items()}
            for number, one in state["state"].items()
        },
    }


def _cut_value(value: Any, like: Tensor) -> Any:
    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        return {_SLICE: cut(value, like).clone(), _SHAPE: list(like.shape)}
    return value


def shape_of(value: Any) -> torch.Size:
    """Return the shape of a tensor, or of the whole of which a slice waits."""
    return torch.Size(value[_SHAPE] if _is_slice(value) else value.shape)


def live(value: Any, like: Tensor, device: torch.device) -> Any:
    """Undo `waiting`, for a parameter on a device."""
    if _is_slice(value):
        assert isinstance(like, DTensor), "slices are of parameters that are in slices"
        return _joined(value, like.device_mesh, device)
    return value.to(device) if isinstance(value, Tensor) else value


def whole_nest(nest: Any, mesh: DeviceMesh, device: torch.device) -> Any:
    """Return containers with all that is in slices whole, in host memory. All of a team call it for the same."""
    if _is_slice(nest):
        nest = _joined(nest, mesh, device)
    if isinstance(nest, DTensor):
        return gathered(nest).cpu()
    if isinstance(nest, dict):
        return {key: whole_nest(one, mesh, device) for key, one in nest.items()}
    return [whole_nest(one, mesh, device) for one in nest] if isinstance(nest, list) else nest


def _is_slice(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and _SLICE in value


def _joined(value: dict[str, Any], mesh: DeviceMesh, device: torch.device) -> DTensor:
    shape = torch.Size(value[_SHAPE])
    stride = torch.empty(shape, device="meta").stride()
    local = value[_SLICE].to(device)
    return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)
