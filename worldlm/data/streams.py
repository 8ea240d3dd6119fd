"""Streams of text: the content of a file as UTF-8, whatever its compression and encoding."""

from __future__ import annotations

import bz2
import codecs
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from worldlm.files.regular import check_regular
from worldlm.topology.errors import first_line, printable

Located: TypeAlias = tuple[Any, str, float]
"""A record, its position, and the fraction of the file that is read, from 0 to 1."""

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
"""The endings of compressed files."""

_CHUNK = 2**14
_BUFFER = 2**17
_BOMS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark is the beginning of this one
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@contextmanager
def open_text(file: Path) -> Iterator[tuple[BinaryIO, Callable[[], float]]]:
    """Open a file that contains text.

    The first bytes show whether it is compressed. A byte order mark at its beginning shows UTF-8, UTF-16 or UTF-32, and
    is left out; without one, the bytes are passed on as they are.

    Yields:
        A stream of the text as UTF-8, and a function that returns the fraction of the file that is read, from 0 to 1.

    Raises:
        ValueError: If the file cannot be opened, or while it is read, if it is damaged or ends too early.
    """
    try:
        raw = check_regular(file).open("rb")
    except OSError as error:
        raise unreadable(file, error) from error
    with raw:
        size = max(os.fstat(raw.fileno()).st_size, 1)
        stream = io.BufferedReader(_Chunks(_to_utf8(file, _decompress(file, raw))), _BUFFER)
        yield stream, lambda: min(raw.tell() / size, 1.0)


def unreadable(file: Path, error: Exception) -> ValueError:
    """Return an error that names the file and the reason in one line."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    return ValueError(f"{printable(str(file))}: cannot be read ({reason})")


def not_utf8(file: Path) -> ValueError:
    """Return an error that names the line and the first byte that is not UTF-8."""
    with open_text(file) as (stream, _):
        for number, line in enumerate(stream, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                before = line[max(error.start - 20, 0) : error.start].decode(errors="ignore")
                return ValueError(
                    f"{printable(str(file))}:{number}: not UTF-8: byte 0x{line[error.start]:02x} after {before!r}; "
                    "convert the file, for example with iconv -f LATIN1 -t UTF-8"
                )
    return ValueError(f"{printable(str(file))}: not UTF-8")


class _Chunks(io.RawIOBase):
    """A stream of the bytes that an iterator yields."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size


def _decompress(file: Path, raw: BinaryIO) -> Iterator[bytes]:
    """Yield the content of a file. Several compressed streams, one after the other, are one content."""
    try:
        chunk = raw.read(_CHUNK)
        new = _decoder(chunk)
        if new is None:
            if file.suffix.lower() in COMPRESSIONS:
                raise ValueError(f"it is not compressed, although its name ends in {file.suffix}")
            while chunk:
                yield chunk
                chunk = raw.read(_BUFFER)
            return
        decoder = new()
        while chunk:
            yield decoder.decompress(chunk)
            chunk = decoder.unused_data or raw.read(_CHUNK)
            if decoder.eof and chunk:
                decoder = new()
        if not decoder.eof:
            raise EOFError("it ends in the middle of its compressed data; part of it is missing")
    except Exception as error:  # zlib, lzma and zstandard each raise their own classes
        raise unreadable(file, error) from error


def _decoder(start: bytes) -> Callable[[], Any] | None:
    """Return what creates a decompressor, given the beginning of a file; None if it is not compressed."""
    if start.startswith(b"\x1f\x8b"):
        return lambda: zlib.decompressobj(31)  # with gzip's header and checksum
    if start.startswith(b"BZh") and start[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):
        return bz2.BZ2Decompressor
    if start.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor
    if start.startswith(b"\x28\xb5\x2f\xfd") or (start[1:4] == b"\x2a\x4d\x18" and 0x50 <= start[0] < 0x60):
        import zstandard

        return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj  # the largest that `zstd --long` writes
    return None


def _to_utf8(file: Path, chunks: Iterator[bytes]) -> Iterator[bytes]:
    start = b""
    for chunk in chunks:
        start += chunk
        if len(start) >= 4:
            break
    encoding = next((name for mark, name in _BOMS.items() if start.startswith(mark)), None)
    if encoding is None:
        yield start.removeprefix(codecs.BOM_UTF8)
        yield from chunks
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for chunk in chain([start], chunks):
            yield decoder.decode(chunk).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        raise ValueError(f"{printable(str(file))}: cannot be read as {encoding.upper()} ({error})") from error
