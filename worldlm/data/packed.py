"""Packed text: a corpus as tokens on disk.

    NAME-KEY/           a packed corpus, complete; KEY is a digest of corpus, tokenizer and format
        train.bin       tokens, uint16 or uint32, little-endian, each document followed by the end of text
        train.documents     for each document, where its tokens end, and whose it is: `DOCUMENT`, little-endian
        train.targets   of conversations only: for each token, a byte that is 1 if it is to be predicted, else 0
        validation.bin, validation.documents, validation.targets
        counts.json     the size of each split, and checksums

An incomplete folder is called `.NAME-KEY.partial` and has the same files. It is renamed when it is complete.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldlm.data.corpora import SplitName
from worldlm.data.digests import digest
from worldlm.files.regular import check_regular

FORMAT = 4
"""The version of the format; it is increased whenever the same text would be packed differently."""

DOCUMENT = np.dtype([("end", "<u8"), ("person", "<u8")])
"""A document: the position after its last token, and a digest of the person whose text it is, or 0."""

SPLITS: tuple[SplitName, ...] = ("train", "validation")

COUNTS = "counts.json"
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
    num_targets: int | None = None
    """Tokens to predict; None if all are."""
    targets_crc32: int | None = None
    """CRC-32 of the file of targets; None if there is none."""


@dataclass(frozen=True, eq=False)
class PackedCorpus:
    """A split of a corpus as tokens.

    The tokenizer's end of text follows each document, unless the documents are conversations.
    """

    path: Path
    """The file of tokens."""
    tokens: NDArray[np.integer]
    """All tokens, shape [num_tokens], uint16 or uint32, mapped from `path` and read-only."""
    num_bytes: int
    """Bytes in UTF-8 of the text that is predicted, without control tokens."""
    num_documents: int
    """Number of documents."""
    crc32: int | None = None
    """CRC-32 of the file of tokens, and of which are to be predicted; None if it was not recorded."""
    documents: NDArray[np.void] | None = None
    """All documents, shape [num_documents], `DOCUMENT`, mapped from disk; None if they were not recorded."""
    values: Mapping[str, int] = field(default_factory=dict)
    """Tokens by the value of the field that a partition splits by; empty if there is none."""
    targets: NDArray[np.uint8] | None = None
    """1 for each token to predict, else 0, shape [num_tokens], mapped from disk; None if all are to be predicted."""
    num_targets: int | None = None
    """Number of tokens to predict; None if all are."""

    @classmethod
    def open(cls, path: Path) -> PackedCorpus:
        """Open a split; `open_folder` also verifies its content.

        Args:
            path: The file of tokens, `train.bin` or `validation.bin` in the folder of a packed corpus.

        Raises:
            ValueError: If it is missing, or its size does not match the counts.
        """
        try:
            dtype, counts = read_counts(path.with_name(COUNTS))
            expected = counts[path.stem]  # type: ignore[index]
            tokens = np.memmap(check_regular(path), dtype=dtype, mode="r")
            documents = np.memmap(check_regular(documents_of(path)), dtype=DOCUMENT, mode="r")
            targets = None
            if expected.num_targets is not None:
                targets = np.memmap(check_regular(targets_of(path)), dtype=np.uint8, mode="r")
        except (OSError, TypeError, ValueError, KeyError) as error:
            raise ValueError(f"{path} is not a packed corpus: {error}") from error
        if len(tokens) != expected.num_tokens or path.stat().st_size != tokens.nbytes:
            raise ValueError(f"{path} holds {path.stat().st_size} bytes, not {expected.num_tokens} tokens of {dtype}")
        if len(documents) != expected.num_documents:
            raise ValueError(f"{documents_of(path)} holds {len(documents)} documents, not {expected.num_documents}")
        if targets is not None and len(targets) != expected.num_tokens:
            raise ValueError(f"{targets_of(path)} holds {len(targets)} tokens, not {expected.num_tokens}")
        crc32 = expected.crc32
        if expected.targets_crc32 is not None:
            crc32 = zlib.crc32(expected.targets_crc32.to_bytes(4, "little"), crc32)
        sizes = (expected.num_bytes, expected.num_documents, crc32)
        return cls(path, tokens, *sizes, documents, expected.values, targets, expected.num_targets)

    @property
    def num_tokens(self) -> int:
        """Number of tokens, control tokens included."""
        return len(self.tokens)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per predicted token, to turn loss per token into bits per byte."""
        return self.num_bytes / (self.num_tokens if self.num_targets is None else self.num_targets)

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
    dtype, counts = read_counts(folder / COUNTS)
    for split, corpus in packed.items() if verify else ():
        for file, size, expected in files_of(corpus.path, dtype, counts[split]):
            limit = (corpus.tokens.dtype, vocab_size) if file == corpus.path else ()
            if checksum(file, size, *limit) != expected:
                raise ValueError(f"{file} was changed after it was written: its checksum differs")
        _check_documents(documents_of(corpus.path), corpus)
        _check_targets(targets_of(corpus.path), corpus)
    return packed


def _check_documents(path: Path, corpus: PackedCorpus) -> None:
    assert corpus.documents is not None
    ends = corpus.documents["end"]
    if (
        not len(ends)
        or ends[-1] != corpus.num_tokens
        or (np.diff(ends, prepend=np.uint64(0)).view(np.int64) <= 0).any()
    ):
        raise ValueError(f"{path} does not divide the {corpus.num_tokens} tokens of {corpus.path.name} into documents")


def _check_targets(path: Path, corpus: PackedCorpus) -> None:
    if corpus.targets is None or corpus.documents is None:
        return
    begins = np.concatenate([[0], corpus.documents["end"][:-1].astype(np.int64)])
    is_mask = corpus.targets.max() == 1 and np.count_nonzero(corpus.targets) == corpus.num_targets
    if not is_mask or corpus.targets[begins].any():  # nothing stands before the first token of a conversation
        raise ValueError(f"{path} does not mark {corpus.num_targets} tokens of {corpus.path.name} to predict")


def files_of(path: Path, dtype: str, counts: Counts) -> list[tuple[Path, int, int]]:
    """Return the files of a split, each with its size in bytes and its CRC-32.

    Args:
        path: The file of tokens.
        dtype: `uint16` or `uint32`.
        counts: The size of the split.
    """
    files = [
        (path, counts.num_tokens * np.dtype(dtype).itemsize, counts.crc32),
        (documents_of(path), counts.num_documents * DOCUMENT.itemsize, counts.documents_crc32),
    ]
    if counts.targets_crc32 is not None:
        files.append((targets_of(path), counts.num_tokens, counts.targets_crc32))
    return files


def targets_of(path: Path) -> Path:
    """Return the file of targets that belongs to a file of tokens."""
    return path.with_suffix(".targets")


def documents_of(path: Path) -> Path:
    """Return the file of documents that belongs to a file of tokens."""
    return path.with_suffix(".documents")


def read_counts(path: Path) -> tuple[str, dict[SplitName, Counts]]:
    """Read the type of the tokens, and the size of each split.

    Raises:
        ValueError: If the format is unknown, or the counts were changed.
    """
    content = json.loads(check_regular(path).read_text("utf-8"))
    if content["format"] != FORMAT or content["dtype"] not in ("uint16", "uint32"):
        raise ValueError(f"format {content['format']} of {content['dtype']} is unknown")
    if content["digest"] != digest(content["splits"]):
        raise ValueError("the counts were changed after they were written")
    return content["dtype"], {split: Counts(**content["splits"][split]) for split in SPLITS}


def checksum(path: Path, size: int, dtype: np.dtype[Any] | None = None, vocab_size: int | None = None) -> int:
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
