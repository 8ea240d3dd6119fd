"""Tensors on disk: written once, mapped into memory while in use, deleted when they are no longer referenced.

The content of a waiting node is a nest: plain containers with tensors, at any depth. `Pages.put` returns the same nest
with a `PagedTensor` in place of every large tensor. A `PagedTensor` can be read like any other tensor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, count
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from worldlm.files.atomic_write import atomic_write
from worldlm.storage.page_files import Page, Spare, digest, save

_SMALLEST = 4096
"""Tensors of fewer bytes, such as counters and norms, stay in memory."""

_ALIGNMENT = 64
"""Alignment of torch's tensors in bytes. The last bits of a result may depend on it."""


@dataclass(frozen=True, weakref_slot=True, slots=True)
class Content:
    """Where the content of a tensor is stored. Tensors that are equal bit for bit share it."""

    page: Page
    key: str
    """Digest of type, shape and values."""
    shape: torch.Size
    dtype: torch.dtype

    def read(self, *, shared: bool = False) -> Tensor:
        """Return the tensor, as `Page.read`."""
        return self.page.read(self.key, self.shape, self.dtype, shared=shared)


class PagedTensor(Tensor):
    """A tensor on disk, which is mapped into memory whenever an operation reads it.

    It is read-only: an operation that writes into it raises an error. Its shape and type are available without the
    disk.
    """

    content: Content

    @staticmethod
    def __new__(cls, content: Content) -> PagedTensor:
        """Make a tensor without memory."""
        empty = torch.empty(content.shape, dtype=content.dtype, device="meta")
        tensor: PagedTensor = torch.Tensor._make_subclass(cls, empty)
        tensor.content = content
        return tensor

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation on the content on disk.

        Raises:
            RuntimeError: If the operation writes into it.
        """
        if func in _WITHOUT_CONTENT:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        mapped: list[Tensor] = []
        result = func(*_read(args, mapped), **dict(_read(list((kwargs or {}).items()), mapped)))
        if any(tensor._version for tensor in mapped):
            raise RuntimeError(
                f"{getattr(func, '__name__', func)} writes into a tensor that is on disk: replace tensors in a node's "
                "memory or in a message instead of writing into them"
            )
        return result

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the content on disk as a plain tensor."""
        tensor: Any = self.content.read(shared=True)
        return tensor.__reduce_ex__(protocol)


def _read(arguments: Any, mapped: list[Tensor]) -> Any:
    """Return arguments with their paged tensors mapped into memory, and append these tensors to a list."""
    if isinstance(arguments, PagedTensor):
        mapped.append(arguments.content.read())
        return mapped[-1]
    if type(arguments) in (list, tuple):
        return type(arguments)(_read(argument, mapped) for argument in arguments)
    return arguments


_WITHOUT_CONTENT = {
    Tensor.shape.__get__,  # type: ignore[attr-defined]
    Tensor.dtype.__get__,  # type: ignore[attr-defined]
    Tensor.numel,
    Tensor.element_size,
    Tensor.size,
    Tensor.dim,
    Tensor.__len__,
}


class Pages:
    """A folder of pages.

    Args:
        folder: Where the pages are written; made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._contents: WeakValueDictionary[str, Content] = WeakValueDictionary()
        """All contents in use, by digest."""
        self._numbers = count()
        self._spare = Spare()

    def put(self, nest: Any) -> Any:
        """Return a copy of a nest (dicts, lists and tuples, with tensors) whose large tensors are on disk.

        Content that is already on disk is not written again. All other large tensors of one call are written into one
        page, which is renamed once it is complete. Small tensors are cloned, and stay in memory.
        """
        large = {id(tensor): tensor for tensor in tensors_in(nest) if not isinstance(tensor, PagedTensor)}
        large = {
            identity: tensor.detach()
            for identity, tensor in large.items()
            if tensor.numel() * tensor.element_size() >= _SMALLEST
        }
        keys = {identity: digest(tensor) for identity, tensor in large.items()}
        contents = {key: self._contents.get(key) for key in keys.values()}  # references, so that none is deleted
        new = {keys[identity]: tensor for identity, tensor in large.items() if contents[keys[identity]] is None}
        if new:
            page = self._write(new)
            for key, tensor in new.items():
                self._contents[key] = contents[key] = Content(page, key, tensor.shape, tensor.dtype)

        def paged(tensor: Tensor) -> Tensor:  # always a new object: a checkpoint would store the same object only once
            content = tensor.content if isinstance(tensor, PagedTensor) else contents.get(keys.get(id(tensor), ""))
            return tensor.detach().clone() if content is None else PagedTensor(content)

        return map_tensors(nest, paged)

    def _write(self, tensors: dict[str, Tensor]) -> Page:
        path = self.folder / f"{next(self._numbers)}.safetensors"
        with atomic_write(path) as partial:
            self._spare.give(partial)
            offsets = save(tensors, partial)
        return Page(path, offsets, self._spare)


def fetch(nest: Any) -> Any:
    """Undo `Pages.put`: return a copy of a nest with all tensors in memory.

    All tensors that were on disk share one block of memory, which is freed with the last of them.

    Raises:
        OSError: If a page does not hold what was written into it.
    """
    sizes = [_aligned_size(tensor) for tensor in tensors_in(nest) if isinstance(tensor, PagedTensor)]
    block = np.empty(sum(sizes) + _ALIGNMENT, np.uint8)  # from numpy, which requests huge pages
    offsets = accumulate(sizes, initial=-block.ctypes.data % _ALIGNMENT)
    reads: dict[Page, list[tuple[str, Tensor]]] = defaultdict(list)

    def in_memory(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, PagedTensor):
            return tensor.clone()
        content = tensor.content
        shape = content.shape
        target = torch.frombuffer(block, dtype=content.dtype, count=shape.numel(), offset=next(offsets)).view(shape)
        reads[content.page].append((content.key, target))
        return target

    fetched = map_tensors(nest, in_memory)
    for page, tensors in reads.items():
        page.read_into(tensors)
    return fetched


def _aligned_size(tensor: Tensor) -> int:
    return -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT


def tensors_in(nest: Any) -> Iterable[Tensor]:
    """Yield the tensors of a nest: dicts, lists and tuples."""
    if isinstance(nest, Tensor):
        yield nest
    elif type(nest) in (dict, list, tuple):
        for inner in nest.values() if type(nest) is dict else nest:
            yield from tensors_in(inner)


def map_tensors(nest: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of a nest (dicts, lists and tuples, with tensors) with a function applied to every tensor."""
    if isinstance(nest, Tensor):
        return function(nest)
    if type(nest) is dict:
        return {key: map_tensors(inner, function) for key, inner in nest.items()}
    return type(nest)(map_tensors(inner, function) for inner in nest) if type(nest) in (list, tuple) else nest
