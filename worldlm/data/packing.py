"""Packed text: a corpus as tokens on disk, and the writer of its folder.

    NAME-KEY/           a packed corpus, complete; KEY is a digest of corpus, tokenizer and format
        train.bin       tokens, uint16 or uint32, little-endian, each document followed by the end of text
        train.documents     for each document, where its tokens end, and whose it is: `DOCUMENT`, little-endian
        validation.bin, validation.documents
        counts.json     the size of each split, and checksums

An incomplete folder is called `.NAME-KEY.partial` and has the same files. It is renamed when it is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from worldlm.data.corpora import SplitName, digest
from worldlm.files.regular import check_regular

FORMAT = 4
"""The version of the format; it is increased whenever the same text would be packed differently."""

DOCUMENT = np.dtype([("end", "<u8"), ("person", "<u8")])
"""A document: the position after its last token, and a digest of the person whose text it is, or 0."""

SPLITS: tuple[SplitName, ...] = ("train", "validation")

_COUNTS = "counts.json"
_CHUNK = 2**24


@dataclass(slots=True, kw_only=True)
class Counts:
    """The size of a split that is packed so far."""

    num_tokens: int = 0
    num_bytes: int = 0
    num_documents: int = 0
    crc32: int = 0
    """CRC-32 of the file of tokens."""
    documents_crc32: int = 0
    """CRC-32 of the file of documents."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Number of records that gave no document, by the reason."""
    values: dict[str, int] = field(default_factory=dict)  # tokens by the value of the field that a partition splits by


@dataclass(frozen=True, eq=False)
class PackedCorpus:
    """A split of a corpus as tokens; the tokenizer's end of text follows each document."""

    path: Path
    """The file of tokens."""
    tokens: NDArray[np.integer]
    """All tokens, shape [num_tokens], uint16 or uint32, mapped from `path` and read-only."""
    num_bytes: int
    """Bytes of the text in UTF-8, without the end-of-text tokens."""
    num_documents: int
    """Number of documents."""
    crc32: int | None = None
    """CRC-32 of the file of tokens; None if it was not recorded."""
    documents: NDArray[np.void] | None = None
    """All documents, shape [num_documents], `DOCUMENT`, mapped from disk; None if they were not recorded."""
    values: Mapping[str, int] = field(default_factory=dict)
    """Tokens by the value of the field that a partition splits by; empty if there is none."""

    @classmethod
    def open(cls, path: Path) -> PackedCorpus:
        """Open a split; `open_folder` also verifies its content.

        Args:
            path: The file of tokens, `train.bin` or `validation.bin` in the folder of a packed corpus.

        Raises:
            ValueError: If it is missing, or its size does not match the counts.
        """
        try:
            dtype, counts = _read_counts(path.with_name(_COUNTS))
            expected = counts[path.stem]  # type: ignore[index]
            tokens = np.memmap(check_regular(path), dtype=dtype, mode="r")
            documents = np.memmap(check_regular(_documents_of(path)), dtype=DOCUMENT, mode="r")
        except (OSError, TypeError, ValueError, KeyError) as error:
            raise ValueError(f"{path} is not a packed corpus: {error}") from error
        if len(tokens) != expected.num_tokens or path.stat().st_size != tokens.nbytes:
            raise ValueError(f"{path} holds {path.stat().st_size} bytes, not {expected.num_tokens} tokens of {dtype}")
        if len(documents) != expected.num_documents:
            raise ValueError(f"{_documents_of(path)} holds {len(documents)} documents, not {expected.num_documents}")
        sizes = (expected.num_bytes, expected.num_documents, expected.crc32)
        return cls(path, tokens, *sizes, documents, expected.values)

    @property
    def num_tokens(self) -> int:
        """Number of tokens, end-of-text tokens included."""
        return len(self.tokens)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token, to turn loss per token into bits per byte."""
        return self.num_bytes / self.num_tokens

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        """Pickle the path instead of the tokens, for data workers."""
        return PackedCorpus.open, (self.path,)


def open_folder(folder: Path, *, verify: bool = True, vocab_size: int | None = None) -> dict[SplitName, PackedCorpus]:
    """Open both splits of a packed corpus.

    Args:
        folder: The folder of the packed corpus.
        verify: Whether to verify the checksums; if not, only the sizes are checked.
        vocab_size: If given, all tokens are checked to be below it, in the same pass as the checksums.

    Raises:
        ValueError: If a file is missing, truncated or changed, or a token is not in the vocabulary.
    """
    packed = {split: PackedCorpus.open(folder / f"{split}.bin") for split in SPLITS}
    _, counts = _read_counts(folder / _COUNTS)
    for split, corpus in packed.items() if verify else ():
        path, documents, expected = corpus.path, _documents_of(corpus.path), counts[split]
        tokens_crc32 = _checksum(path, path.stat().st_size, corpus.tokens.dtype, vocab_size)
        documents_crc32 = _checksum(documents, documents.stat().st_size)
        checks = (path, tokens_crc32, expected.crc32), (documents, documents_crc32, expected.documents_crc32)
        for file, found, wanted in checks:
            if found != wanted:
                raise ValueError(f"{file} was changed after it was written: its checksum differs")
        _check_documents(documents, corpus)
    return packed


class Packing:
    """Writes the tokens of a corpus to a folder.

    Saved data survives a kill at any moment, and a new object continues from the last `save`.

    Args:
        target: The folder of the packed corpus once it is complete.
        dtype: `uint16` or `uint32`.
    """

    position: tuple[int, int]
    """The index of the current reading, and the number of its records that are processed."""
    counts: dict[SplitName, Counts]
    """The sizes of the text that is packed so far."""

    def __init__(self, target: Path, dtype: str) -> None:
        self.target = target
        self.folder = target.with_name(f".{target.name}.partial")
        self.dtype = dtype
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.position, self.counts = self._load()
        except (OSError, TypeError, ValueError, KeyError):  # missing or damaged: start again
            self.position, self.counts = (0, 0), {split: Counts() for split in SPLITS}
        self._files: dict[Path, BinaryIO] = {}
        sizes = {check_regular(path): size for path, size in self._sizes().items()}
        for path, size in sizes.items():
            self._files[path] = path.open("ab")
            self._files[path].truncate(size)

    def append(
        self,
        split: SplitName,
        tokens: NDArray[np.integer],
        num_bytes: int,
        lengths: NDArray[np.int64],
        persons: NDArray[np.uint64],
    ) -> None:
        """Add documents to a split.

        Args:
            split: The split.
            tokens: The tokens of the documents, each followed by the end of text, of this packing's dtype.
            num_bytes: Bytes of the documents in UTF-8.
            lengths: Tokens of each document, the end of text included, shape [documents].
            persons: A digest of the person whose text each document is, or 0; same shape.
        """
        counts, path = self.counts[split], self._path(split)
        documents = np.empty(len(lengths), DOCUMENT)
        documents["end"], documents["person"] = counts.num_tokens + np.cumsum(lengths), persons
        self._files[path].write(tokens.data)
        self._files[_documents_of(path)].write(documents.tobytes())
        counts.crc32 = zlib.crc32(tokens.data, counts.crc32)
        counts.documents_crc32 = zlib.crc32(documents.tobytes(), counts.documents_crc32)
        counts.num_tokens += len(tokens)
        counts.num_bytes += num_bytes
        counts.num_documents += len(lengths)

    def save(self) -> None:
        """Write the packed text and the position to disk, so that they survive a kill."""
        for stream in self._files.values():
            stream.flush()
            os.fsync(stream.fileno())
        content: dict[str, object] = {
            "format": FORMAT,
            "dtype": self.dtype,
            "position": self.position,
            "splits": {split: asdict(counts) for split, counts in self.counts.items()},
        }
        content["digest"] = digest(content["splits"])
        new = self.folder / f"{_COUNTS}.new"
        with check_regular(new).open("wb") as stream:
            stream.write(json.dumps(content).encode())
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(self.folder / _COUNTS)

    def finish(self) -> None:
        """Save, and rename the folder, which marks it as complete."""
        self.save()
        self.close()
        if self.target.exists():  # it is damaged, otherwise the corpus would not be packed again
            shutil.rmtree(self.target)
        self.folder.replace(self.target)

    def close(self) -> None:
        """Close the files; a new object can continue from the last save."""
        for stream in self._files.values():
            stream.close()
        self._files.clear()  # if the folder then cannot be renamed, there is nothing more to flush

    def remove(self) -> None:
        """Delete the text that is packed so far."""
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
            path, sizes, expected = self._path(split), self._sizes(), counts[split]
            for file, crc32 in ((path, expected.crc32), (_documents_of(path), expected.documents_crc32)):
                if _checksum(file, sizes[file]) != crc32:
                    raise ValueError(f"{file} was changed after it was written")
        return (reading, records), counts

    def _path(self, split: SplitName) -> Path:
        return self.folder / f"{split}.bin"

    def _sizes(self) -> dict[Path, int]:
        """Return the bytes of each file that are packed so far."""
        sizes: dict[Path, int] = {}
        for split, counts in self.counts.items():
            sizes[self._path(split)] = counts.num_tokens * np.dtype(self.dtype).itemsize
            sizes[_documents_of(self._path(split))] = counts.num_documents * DOCUMENT.itemsize
        return sizes


def _check_documents(path: Path, corpus: PackedCorpus) -> None:
    assert corpus.documents is not None
    ends = corpus.documents["end"]
    if (
        not len(ends)
        or ends[-1] != corpus.num_tokens
        or (np.diff(ends, prepend=np.uint64(0)).view(np.int64) <= 0).any()
    ):
        raise ValueError(f"{path} does not divide the {corpus.num_tokens} tokens of {corpus.path.name} into documents")


def _documents_of(path: Path) -> Path:
    """Return the file of documents that belongs to a file of tokens."""
    return path.with_suffix(".documents")


def _read_counts(path: Path) -> tuple[str, dict[SplitName, Counts]]:
    content = json.loads(check_regular(path).read_text("utf-8"))
    if content["format"] != FORMAT or content["dtype"] not in ("uint16", "uint32"):
        raise ValueError(f"format {content['format']} of {content['dtype']} is unknown")
    if content["digest"] != digest(content["splits"]):
        raise ValueError("the counts were changed after they were written")
    return content["dtype"], {split: Counts(**content["splits"][split]) for split in SPLITS}


def _checksum(path: Path, size: int, dtype: np.dtype[Any] | None = None, vocab_size: int | None = None) -> int:
    """Return the CRC-32 of the first `size` bytes of a file, or of the whole file if it is shorter.

    Raises:
        ValueError: If a token is not in a vocabulary of that size.
    """
    crc = 0
    with check_regular(path).open("rb") as stream:
        while size and (chunk := stream.read(min(size, _CHUNK))):
            crc = zlib.crc32(chunk, crc)
            if vocab_size is not None and (largest := np.frombuffer(chunk, dtype).max()) >= vocab_size:
                raise ValueError(f"{path} holds the token {largest}, but the tokenizer has {vocab_size}")
            size -= len(chunk)
    return crc
