"""Files of tensors on disk. They are written whole, mapped into memory while in use, and then written over."""

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
"""Names of the types in a safetensors file."""

_MAX_SPARE_BYTES = 250_000_000
"""Largest total size of the files that wait to be written over."""


class _Mapping(mmap.mmap):
    """A file mapped into memory. Its reference to the page prevents that the file is written over."""

    page: Page


_SHARED: WeakSet[_Mapping] = WeakSet()
"""Mappings of pages that are read to be saved in a checkpoint."""


class Page:
    """A safetensors file of tensors, named by the digests of their content.

    Args:
        path: The file.
        offsets: Where the bytes of each tensor begin in the file, by digest.
        spare: Receives the file when the page, and memory that maps it, is no longer referenced.
    """

    def __init__(self, path: Path, offsets: dict[str, int], spare: Spare) -> None:
        self.path = path
        self._verified: set[str] = set()
        self._offsets = offsets
        self._shared: Callable[[], _Mapping | None] = lambda: None
        finalize(self, spare.take, path, path.stat().st_size).atexit = False

    def read(self, key: str, shape: torch.Size, dtype: torch.dtype, *, shared: bool = False) -> Tensor:
        """Return a tensor that maps the file. Bytes are read when they are used; writes do not reach the file.

        Args:
            key: Digest of the tensor.
            shape: Its shape.
            dtype: Its type.
            shared: Whether to share the mapping with all other shared reads; the tensor must then not be written into.
                A process can have only some ten thousand mappings. `release_shared` frees the memory.

        Raises:
            OSError: If the file is missing, truncated, or does not hold what was written into it.
        """
        mapping = (shared and self._shared()) or self._map()
        if shared:
            self._shared = ref(mapping)
            _SHARED.add(mapping)
        try:
            tensor = torch.frombuffer(mapping, dtype=dtype, count=shape.numel(), offset=self._offsets[key]).view(shape)
        except ValueError as error:
            raise self._damaged() from error
        if key not in self._verified:
            self._check(key, tensor)
            if shared:
                mapping.madvise(mmap.MADV_DONTNEED)
        return tensor

    def read_into(self, tensors: Sequence[tuple[str, Tensor]]) -> None:
        """Read tensors into allocated memory.

        Args:
            tensors: The digest of each tensor, and the tensor to read into.

        Raises:
            OSError: As `read`.
        """
        try:
            with self.path.open("rb") as file:
                for key, tensor in tensors:
                    file.seek(self._offsets[key])
                    if file.readinto(_bytes(tensor)) < tensor.nbytes:
                        raise EOFError("cut short")
        except (OSError, EOFError) as error:
            raise self._damaged() from error
        for key, tensor in tensors:
            if key not in self._verified:
                self._check(key, tensor)

    def _check(self, key: str, tensor: Tensor) -> None:
        """Compare a tensor with its digest. This is done once for each tensor."""
        if digest(tensor) != key:
            raise self._damaged()
        self._verified.add(key)

    def _map(self) -> _Mapping:
        try:
            with self.path.open("rb") as file:
                mapping = _Mapping(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise self._damaged() from error
        mapping.page = self
        return mapping

    def _damaged(self) -> OSError:
        return OSError(
            f"{self.path} does not hold what was written into it: the disk or another program has damaged the file; "
            "resume from the last checkpoint"
        )


class Spare:
    """Files that are no longer referenced and can be written over.

    Writing over a file costs a fraction of writing a new one: its blocks on disk are allocated, and most of its pages
    are in the system's cache.
    """

    def __init__(self) -> None:
        self._files: deque[tuple[Path, int]] = deque()

    def take(self, path: Path, size: int) -> None:
        """Add a file of `size` bytes, and delete the oldest files while all together exceed the limit."""
        self._files.append((path, size))
        with suppress(IndexError):  # the prefetch thread may release a page at the same time
            while sum(spare_size for _, spare_size in tuple(self._files)) > _MAX_SPARE_BYTES:
                self._files.popleft()[0].unlink(missing_ok=True)

    def give(self, path: Path) -> None:
        """Move the newest file to a path, if there is one."""
        with suppress(IndexError, FileNotFoundError):
            self._files.pop()[0].replace(path)


def release_shared() -> None:
    """Free the memory of all shared mappings. Their bytes are read again when they are needed."""
    for mapping in list(_SHARED):
        mapping.madvise(mmap.MADV_DONTNEED)


def digest(tensor: Tensor) -> str:
    """Return a digest of 128 bits of a tensor's type, shape and values. It detects damage, but not a forged tensor."""
    hasher = xxhash.xxh3_128(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    hasher.update(_bytes(tensor))
    return str(hasher.hexdigest())


def save(tensors: dict[str, Tensor], path: Path) -> dict[str, int]:
    """Write a safetensors file over an existing file, which `safetensors.torch.save_file` would delete first.

    Returns:
        Where the bytes of each tensor begin in the file.
    """
    header, begins, end = {}, {}, 0
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))  # so that all are aligned
    for key, tensor in tensors.items():
        begins[key], end = end, end + tensor.numel() * tensor.element_size()
        header[key] = {"dtype": _TYPES[tensor.dtype], "shape": tuple(tensor.shape), "data_offsets": (begins[key], end)}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors.values():
            file.write(_bytes(tensor))
        file.truncate()
    return {key: 8 + len(encoded) + begin for key, begin in begins.items()}


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
