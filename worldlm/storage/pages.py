"""Tensors on disk: written once, mapped into memory while they are used, gone once nobody refers to them.

What belongs to a waiting node is a nest of plain containers and tensors. `Pages.put` gives back the same nest with a
`PagedTensor` for every tensor that is worth a place on disk. It is a tensor like any other to whoever reads it.
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
"""Tensors of fewer bytes stay in memory: a counter or a norm is not worth a place on disk."""

_ALIGNED = 64
"""Bytes of whose multiples torch lets tensors begin, on which last bits of what is computed may depend."""


@dataclass(frozen=True, weakref_slot=True, slots=True)
class Content:
    """Where a tensor lies, shared by all that are equal to it bit for bit."""

    page: Page
    key: str
    """Digest of type, shape and values."""
    shape: torch.Size
    dtype: torch.dtype

    def read(self, *, shared: bool = False) -> Tensor:
        """Return the tensor, as `Page.read`."""
        return self.page.read(self.key, self.shape, self.dtype, shared=shared)


class PagedTensor(Tensor):
    """A tensor that is on disk, and mapped into memory whenever an operation reads it.

    To read it is all that one can do: an operation that would write into it is an error. Shape and type are known
    without the disk.
    """

    content: Content

    @staticmethod
    def __new__(cls, content: Content) -> PagedTensor:
        """Make a tensor without memory."""
        empty = torch.empty(content.shape, dtype=content.dtype, device="meta")
        made: PagedTensor = torch.Tensor._make_subclass(cls, empty)
        made.content = content
        return made

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Carry out an operation on what is on disk.

        Raises:
            RuntimeError: If it writes into it.
        """
        if func in _KNOWN:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        read: list[Tensor] = []
        found = func(*_read(args, read), **dict(_read(list((kwargs or {}).items()), read)))
        if any(one._version for one in read):
            raise RuntimeError(
                f"{getattr(func, '__name__', func)} writes into a tensor that is on disk: what a node keeps in its "
                "memory, and what it was sent, is replaced, not written into"
            )
        return found

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as the tensor that is on disk."""
        read: Any = self.content.read(shared=True)
        return read.__reduce_ex__(protocol)


def _read(nest: Any, read: list[Tensor]) -> Any:
    """Return arguments with what is on disk in memory, and list it."""
    if isinstance(nest, PagedTensor):
        read.append(nest.content.read())
        return read[-1]
    return type(nest)(_read(one, read) for one in nest) if type(nest) in (list, tuple) else nest


_KNOWN = {
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
        folder: Where they are written; made if need be.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._known: WeakValueDictionary[str, Content] = WeakValueDictionary()
        self._numbers = count()
        self._spare = Spare()

    def put(self, nest: Any) -> Any:
        """Return a nest of dicts, lists and tuples with its tensors on disk, new containers around them.

        Tensors whose content is already there are not written again, whoever put them. All others of one call go into
        one page, written beside and renamed. Small tensors stay in memory, in memory of their own.
        """
        large = {id(one): one for one in _tensors(nest) if not isinstance(one, PagedTensor)}
        large = {key: one.detach() for key, one in large.items() if one.numel() * one.element_size() >= _SMALLEST}
        keys = {key: digest(one) for key, one in large.items()}
        there = {key: self._known.get(key) for key in keys.values()}  # held, so that none is deleted meanwhile
        new = {keys[key]: one for key, one in large.items() if there[keys[key]] is None}
        if new:
            page = self._write(new)
            for key, one in new.items():
                self._known[key] = there[key] = Content(page, key, one.shape, one.dtype)
        contents = {number: there[key] for number, key in keys.items()}

        def as_it_waits(tensor: Tensor) -> Tensor:  # a new object at every place: no two of them become one when saved
            content = tensor.content if isinstance(tensor, PagedTensor) else contents.get(id(tensor))
            return tensor.detach().clone() if content is None else PagedTensor(content)

        return replaced(nest, as_it_waits)

    def _write(self, tensors: dict[str, Tensor]) -> Page:
        path = self.folder / f"{next(self._numbers)}.safetensors"
        with atomic_write(path) as partial:
            self._spare.give(partial)
            places = save(tensors, partial)
        return Page(path, places, self._spare)


def fetch(nest: Any) -> Any:
    """Undo `Pages.put`: return a nest with its tensors in memory, new containers around.

    All that was on disk comes to lie in one piece of memory, which goes with the last of these tensors.

    Raises:
        OSError: If a page does not hold what was written into it.
    """
    sizes = [_room_for(one) for one in _tensors(nest) if isinstance(one, PagedTensor)]
    room = np.empty(sum(sizes) + _ALIGNED, np.uint8)  # of numpy, which asks for large pages
    places = accumulate(sizes, initial=-room.ctypes.data % _ALIGNED)
    wanted: dict[Page, list[tuple[str, Tensor]]] = defaultdict(list)

    def in_memory(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, PagedTensor):
            return tensor.clone()
        one = tensor.content
        lies = torch.frombuffer(room, dtype=one.dtype, count=one.shape.numel(), offset=next(places)).view(one.shape)
        wanted[one.page].append((one.key, lies))
        return lies

    fetched = replaced(nest, in_memory)
    for page, tensors in wanted.items():
        page.read_into(tensors)
    return fetched


def _room_for(tensor: Tensor) -> int:
    return -(-tensor.numel() * tensor.element_size() // _ALIGNED) * _ALIGNED


def _tensors(nest: Any) -> Iterable[Tensor]:
    if isinstance(nest, Tensor):
        yield nest
    elif type(nest) in (dict, list, tuple):
        for one in nest.values() if type(nest) is dict else nest:
            yield from _tensors(one)


def replaced(nest: Any, new: Callable[[Tensor], Tensor]) -> Any:
    """Return a nest of dicts, lists and tuples with other tensors in it, new containers around them."""
    if isinstance(nest, Tensor):
        return new(nest)
    if type(nest) is dict:
        return {key: replaced(one, new) for key, one in nest.items()}
    return type(nest)(replaced(one, new) for one in nest) if type(nest) in (list, tuple) else nest
