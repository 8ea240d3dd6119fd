"""Files of tensors on disk: written whole, mapped into memory while they are used, written over when they are not."""

from __future__ import annotations

import json
import mmap
import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from weakref import WeakSet, finalize, ref

import torch
import xxhash
from torch import Tensor

_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.complex64: "C64",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.bool: "BOOL",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
"""What types are called in a safetensors file."""

_MOST_SPARE = 250_000_000
"""Bytes of files that wait to be written over."""


class _Mapping(mmap.mmap):
    """A file in memory, and what keeps others from writing over it."""

    page: Page


_SAVING: WeakSet[_Mapping] = WeakSet()
"""What is mapped to be saved."""


class Page:
    """A safetensors file of tensors, each under the digest of its content.

    Args:
        path: The file.
        places: Where in it the bytes of each tensor begin.
        spare: Takes the file when nobody refers to the page, nor to memory that maps it.
    """

    def __init__(self, path: Path, places: dict[str, int], spare: Spare) -> None:
        self.path = path
        self._sound: set[str] = set()
        self._places = places
        self._mapped: Callable[[], _Mapping | None] = lambda: None
        finalize(self, spare.take, path, path.stat().st_size).atexit = False

    def read(self, key: str, shape: torch.Size, dtype: torch.dtype, *, shared: bool = False) -> Tensor:
        """Return a tensor that maps the file: nothing is read before it is used, and nothing written reaches the file.

        Args:
            key: Digest of the tensor.
            shape: Its shape.
            dtype: Its type.
            shared: Whether to share the mapping with all who read so, none of whom may write into it: the mappings
                of a process are limited to some ten thousands. Its memory is given back by `forget`.

        Raises:
            OSError: If the file is gone, is cut short, or does not hold what was written.
        """
        mapped = (shared and self._mapped()) or self._map()
        if shared:
            self._mapped = ref(mapped)
            _SAVING.add(mapped)
        try:
            tensor = torch.frombuffer(mapped, dtype=dtype, count=shape.numel(), offset=self._places[key]).view(shape)
        except ValueError as error:
            raise self._damaged() from error
        if key not in self._sound:
            self._check(key, tensor)
            if shared:
                mapped.madvise(mmap.MADV_DONTNEED)
        return tensor

    def read_into(self, tensors: Sequence[tuple[str, Tensor]]) -> None:
        """Read tensors into memory that is there, each with its digest.

        Raises:
            OSError: As `read`.
        """
        try:
            with self.path.open("rb") as file:
                for key, tensor in tensors:
                    file.seek(self._places[key])
                    if file.readinto(_bytes(tensor)) < tensor.nbytes:
                        raise EOFError("cut short")
        except (OSError, EOFError) as error:
            raise self._damaged() from error
        for key, tensor in tensors:
            if key not in self._sound:
                self._check(key, tensor)

    def _check(self, key: str, tensor: Tensor) -> None:
        """Compare a tensor with its digest, which is done once."""
        if digest(tensor) != key:
            raise self._damaged()
        self._sound.add(key)

    def _map(self) -> _Mapping:
        try:
            with self.path.open("rb") as file:
                mapped = _Mapping(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise self._damaged() from error
        mapped.page = self
        return mapped

    def _damaged(self) -> OSError:
        return OSError(
            f"{self.path} does not hold what was written into it: the disk, or whoever touched the file, damaged it; "
            "resume from the last checkpoint"
        )


class Spare:
    """Files that nobody refers to any more, to be written over.

    That costs a fraction of what a new file costs: its place on disk is there, and mostly its memory in the system's
    cache.
    """

    def __init__(self) -> None:
        self._files: deque[tuple[Path, int]] = deque()

    def take(self, path: Path, size: int) -> None:
        """Take a file of so many bytes, and delete those that wait longest where all are more than a bound."""
        self._files.append((path, size))
        with suppress(IndexError):  # a thread that reads ahead may let a page go at the same time
            while sum(held for _, held in tuple(self._files)) > _MOST_SPARE:
                self._files.popleft()[0].unlink(missing_ok=True)

    def give(self, path: Path) -> None:
        """Move the file that waits the shortest to a path, if there is one."""
        with suppress(IndexError, FileNotFoundError):
            self._files.pop()[0].replace(path)


def forget() -> None:
    """Give back the memory of what was read to be saved; it is read again when it is needed."""
    for mapped in list(_SAVING):
        mapped.madvise(mmap.MADV_DONTNEED)


def digest(tensor: Tensor) -> str:
    """Return a digest of a tensor's type, shape and values, of 128 bits: against damage, not against malice."""
    found = xxhash.xxh3_128(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    found.update(_bytes(tensor))
    return str(found.hexdigest())


def save(tensors: dict[str, Tensor], path: Path) -> dict[str, int]:
    """Write a safetensors file over what is there, which `safetensors.torch.save_file` would throw away first.

    Returns:
        Where in the file the bytes of each tensor begin.
    """
    header, begins, end = {}, {}, 0
    tensors = dict(sorted(tensors.items(), key=lambda one: -one[1].element_size()))  # so that all are aligned
    for key, one in tensors.items():
        begins[key], end = end, end + one.numel() * one.element_size()
        header[key] = {"dtype": _TYPES[one.dtype], "shape": tuple(one.shape), "data_offsets": (begins[key], end)}
    written = json.dumps(header).encode()
    written += b" " * (-len(written) % 8)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as file:
        file.write(len(written).to_bytes(8, "little") + written)
        for one in tensors.values():
            file.write(_bytes(one))
        file.truncate()
    return {key: 8 + len(written) + begin for key, begin in begins.items()}


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
