"""Packed text: a corpus as tokens on disk, and a folder of it that is being filled.

    NAME-KEY/           a packed corpus, complete; KEY is a digest of corpus, tokenizer and format
        train.bin       tokens, uint16 or uint32, little-endian, each document followed by the end of text
        validation.bin
        counts.json     how much there is of each, and a checksum

A folder that is being filled is called `.NAME-KEY.partial`, holds the same files, and gets its name when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from worldlm.data.corpora import SplitName, digest

FORMAT = 2
"""Counted up whenever the same text would be packed differently."""

SPLITS: tuple[SplitName, ...] = ("train", "validation")

_COUNTS = "counts.json"
_CHUNK = 2**24


@dataclass(slots=True, kw_only=True)
class Counts:
    """How much of a split is packed."""

    num_tokens: int = 0
    num_bytes: int = 0
    num_documents: int = 0
    crc32: int = 0
    """CRC-32 of the file of tokens."""


@dataclass(frozen=True, eq=False)
class PackedCorpus:
    """One split of a corpus as tokens; each document is followed by the tokenizer's end of text."""

    path: Path
    """The file of tokens."""
    tokens: NDArray[np.integer]
    """All tokens, shape [num_tokens], uint16 or uint32, mapped from `path` and read-only."""
    num_bytes: int
    """Bytes of the text in UTF-8, without the ends of texts."""
    num_documents: int
    """Number of documents."""
    crc32: int | None = None
    """CRC-32 of the file of tokens; None where nobody wrote it down."""

    @classmethod
    def open(cls, path: Path) -> PackedCorpus:
        """Open a split; `open_folder` checks its content too.

        Args:
            path: The file of tokens, `train.bin` or `validation.bin` in the folder of a packed corpus.

        Raises:
            ValueError: If it is not there, or its size is not what it should be.
        """
        try:
            dtype, counts = _read_counts(path.with_name(_COUNTS))
            own = counts[path.stem]  # type: ignore[index]
            tokens = np.memmap(path, dtype=dtype, mode="r")
        except (OSError, TypeError, ValueError, KeyError) as error:
            raise ValueError(f"{path} is no packed corpus: {error}") from error
        if len(tokens) != own.num_tokens or path.stat().st_size != tokens.nbytes:
            raise ValueError(f"{path} holds {path.stat().st_size} bytes, not {own.num_tokens} tokens of {dtype}")
        return cls(path, tokens, own.num_bytes, own.num_documents, own.crc32)

    @property
    def num_tokens(self) -> int:
        """Number of tokens, ends of texts among them."""
        return len(self.tokens)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text for each token, to turn loss per token into bits per byte."""
        return self.num_bytes / self.num_tokens

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        """Travel to a data worker as a path, not as tokens."""
        return PackedCorpus.open, (self.path,)


def open_folder(folder: Path, *, verify: bool = True) -> dict[SplitName, PackedCorpus]:
    """Open both splits of a packed corpus.

    Args:
        folder: The folder of the packed corpus.
        verify: Whether to check that every byte is what was written; otherwise only the sizes are checked.

    Raises:
        ValueError: If anything is missing, cut short or changed.
    """
    packed = {split: PackedCorpus.open(folder / f"{split}.bin") for split in SPLITS}
    _, counts = _read_counts(folder / _COUNTS)
    for split, one in packed.items() if verify else ():
        if _checksum(one.path, one.path.stat().st_size) != counts[split].crc32:
            raise ValueError(f"{one.path} is not what was written there: its checksum differs")
    return packed


class Packing:
    """A folder that is being filled with a corpus' tokens.

    What `save` was called for outlives a kill at any moment, and a new object goes on from there.

    Args:
        target: The folder of the packed corpus, once it is whole.
        dtype: `uint16` or `uint32`.
    """

    position: tuple[int, int]
    """The reading that is under way, and the records of it that are used up."""
    counts: dict[SplitName, Counts]
    """What is packed so far."""

    def __init__(self, target: Path, dtype: str) -> None:
        self.target = target
        self.folder = target.with_name(f".{target.name}.partial")
        self.dtype = dtype
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.position, self.counts = self._load()
        except (OSError, TypeError, ValueError, KeyError):  # none yet, or damaged
            self.position, self.counts = (0, 0), {split: Counts() for split in SPLITS}
        self._files: dict[SplitName, BinaryIO] = {}
        for split in SPLITS:
            self._files[split] = self._path(split).open("ab")
            self._files[split].truncate(self._size(split))

    def append(self, split: SplitName, tokens: NDArray[np.integer], num_bytes: int, num_documents: int) -> None:
        """Add documents to a split.

        Args:
            split: The split.
            tokens: Their tokens with the ends of texts, of this packing's dtype.
            num_bytes: Bytes of the documents in UTF-8.
            num_documents: Number of documents.
        """
        counts = self.counts[split]
        self._files[split].write(tokens.data)
        counts.crc32 = zlib.crc32(tokens.data, counts.crc32)
        counts.num_tokens += len(tokens)
        counts.num_bytes += num_bytes
        counts.num_documents += num_documents

    def save(self) -> None:
        """Make what is packed so far, and the position, outlive a kill."""
        for stream in self._files.values():
            stream.flush()
            os.fsync(stream.fileno())
        content: dict[str, object] = {
            "format": FORMAT,
            "dtype": self.dtype,
            "position": self.position,
            "splits": {split: asdict(one) for split, one in self.counts.items()},
        }
        content["digest"] = digest(content["splits"])
        new = self.folder / f"{_COUNTS}.new"
        with new.open("wb") as stream:
            stream.write(json.dumps(content).encode())
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(self.folder / _COUNTS)

    def finish(self) -> None:
        """Give the folder its name: it is whole."""
        self.save()
        self.close()
        if self.target.exists():  # damaged, or this would not have been packed
            shutil.rmtree(self.target)
        self.folder.replace(self.target)

    def close(self) -> None:
        """Close the files; what is saved can be taken up again."""
        for stream in self._files.values():
            stream.close()

    def remove(self) -> None:
        """Throw away what is packed so far."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _load(self) -> tuple[tuple[int, int], dict[SplitName, Counts]]:
        dtype, counts = _read_counts(self.folder / _COUNTS)
        content = json.loads((self.folder / _COUNTS).read_text("utf-8"))
        reading, records = content["position"]
        if dtype != self.dtype:
            raise ValueError(f"{dtype} is not {self.dtype}")
        self.counts = counts
        for split in SPLITS:
            if _checksum(self._path(split), self._size(split)) != counts[split].crc32:
                raise ValueError(f"{split} is not what was written")
        return (reading, records), counts

    def _path(self, split: SplitName) -> Path:
        return self.folder / f"{split}.bin"

    def _size(self, split: SplitName) -> int:
        return self.counts[split].num_tokens * np.dtype(self.dtype).itemsize


def _read_counts(path: Path) -> tuple[str, dict[SplitName, Counts]]:
    content = json.loads(path.read_text("utf-8"))
    if content["format"] != FORMAT or content["dtype"] not in ("uint16", "uint32"):
        raise ValueError(f"format {content['format']} of {content['dtype']} is not known")
    if content["digest"] != digest(content["splits"]):
        raise ValueError("the counts are not what was written")
    return content["dtype"], {split: Counts(**content["splits"][split]) for split in SPLITS}


def _checksum(path: Path, size: int) -> int:
    """Return the CRC-32 of the first bytes of a file; of fewer if it ends before."""
    crc = 0
    with path.open("rb") as stream:
        while size and (chunk := stream.read(min(size, _CHUNK))):
            crc = zlib.crc32(chunk, crc)
            size -= len(chunk)
    return crc
