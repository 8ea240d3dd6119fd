"""Corpora: the text a data node holds, as documents in two disjoint splits."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from worldlm.data.readers import find_files, read_documents

SplitName = Literal["train", "validation"]
"""The two splits of every corpus."""

_DEFAULT_FRACTION = 0.05


class Corpus(ABC):
    """The text of a data node. Subclasses are named by `class_path` in a recipe."""

    @abstractmethod
    def documents(self, split: SplitName) -> Iterator[str]:
        """Read the documents of a split, always in the same order.

        Args:
            split: `train`, or `validation` for held-out text. No document is in both.

        Raises:
            ValueError: If the text cannot be read; the message names the file.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a short text that changes whenever the documents may have changed."""

    def under(self, root: Path) -> Corpus:
        """Return the corpus with its relative paths below a folder; most corpora have none."""
        return self


@dataclass(frozen=True, kw_only=True)
class TextFiles(Corpus):
    """Text from files on disk.

    Read are `.txt` (one document a file), `.json` and `.jsonl` (one JSON object a line, also `.gz`
    and `.zst`) and `.parquet`. Patterns may hold `*`, `?`, `[...]` and `**`; files are read in the
    order of their names. Documents without any text are skipped, and so is a training document
    that is also a validation document.
    """

    train: str | list[str]
    """Files to train on: paths or glob patterns, relative to the data module's `root`."""
    validation: str | list[str] | None = None
    """Held-out files; without them, documents of `train` are held out by a hash of their text."""
    field: str = "text"
    """The field (JSON) or column (parquet) that holds a document's text."""
    validation_fraction: float = _DEFAULT_FRACTION
    """Share of the documents to hold out, in (0, 1), where `validation` is not given."""
    max_documents: int | None = None
    """Read at most this many documents of either split."""

    def __post_init__(self) -> None:
        """Check the settings."""
        check_split(self.validation, self.validation_fraction, self.max_documents)

    def under(self, root: Path) -> TextFiles:
        """Return the corpus with its relative patterns below a folder."""

        def move(patterns: str | list[str]) -> str | list[str]:
            if isinstance(patterns, str):
                return str(root / Path(patterns).expanduser())
            return [str(root / Path(one).expanduser()) for one in patterns]

        held_out = self.validation
        return replace(self, train=move(self.train), validation=None if held_out is None else move(held_out))

    def documents(self, split: SplitName) -> Iterator[str]:
        """Read the documents of a split; see `Corpus.documents`."""
        held_out = self.validation
        return split_documents(
            split,
            train=lambda: self._read(self.train),
            validation=None if held_out is None else lambda: self._read(held_out),
            validation_fraction=self.validation_fraction,
            max_documents=self.max_documents,
        )

    def fingerprint(self) -> str:
        """Digest the settings and each file's path, size and time of last change."""
        files = find_files(self.train)
        if self.validation is not None:
            files += find_files(self.validation)
        stats = [(str(file.resolve()), file.stat()) for file in files]
        return digest(repr(self), *((path, s.st_size, s.st_mtime_ns) for path, s in stats))

    def _read(self, patterns: str | list[str]) -> Iterator[str]:
        return chain.from_iterable(read_documents(f, self.field) for f in find_files(patterns))


@dataclass(frozen=True, kw_only=True)
class Mixture(Corpus):
    """Several corpora as one, each with its own splits: what a centralised run trains on."""

    corpora: list[Corpus]
    """The corpora to join; each counts by its size."""

    def __post_init__(self) -> None:
        """Check the settings."""
        if not self.corpora:
            raise ValueError("corpora is empty: a mixture needs at least one corpus")

    def under(self, root: Path) -> Mixture:
        """Return the mixture of the parts below a folder."""
        return replace(self, corpora=[corpus.under(root) for corpus in self.corpora])

    def documents(self, split: SplitName) -> Iterator[str]:
        """Read one corpus after the other; see `Corpus.documents`."""
        return chain.from_iterable(corpus.documents(split) for corpus in self.corpora)

    def fingerprint(self) -> str:
        """Digest the fingerprints of the parts."""
        return digest("Mixture", *(corpus.fingerprint() for corpus in self.corpora))


def digest(*parts: object) -> str:
    """Hash the representations of some plain values to 16 hexadecimal digits."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def check_split(validation: object | None, validation_fraction: float, max_documents: int | None) -> None:
    """Check the settings that say how a corpus is split.

    Raises:
        ValueError: If a setting is out of range or would have no effect.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction is {validation_fraction}; it must be in (0, 1)")
    if validation is not None and validation_fraction != _DEFAULT_FRACTION:
        raise ValueError("validation_fraction has no effect where validation is given: drop one")
    if max_documents is not None and max_documents < 1:
        raise ValueError(f"max_documents is {max_documents}; it must be at least 1, or null")


def split_documents(
    split: SplitName,
    *,
    train: Callable[[], Iterable[str]],
    validation: Callable[[], Iterable[str]] | None,
    validation_fraction: float,
    max_documents: int | None,
) -> Iterator[str]:
    """Read one split of a source so that no document is in both.

    Args:
        split: The split to read.
        train: Opens the training documents.
        validation: Opens the held-out documents, if there are any apart from `train`. Training
            documents identical to one of them are dropped.
        validation_fraction: Share of `train` to hold out by hash where `validation` is None.
        max_documents: Stop after this many documents of either split.

    Yields:
        Documents that hold some text.
    """
    kept: Iterable[str]
    if validation is None:
        held_out = split == "validation"
        limit = int(validation_fraction * 2**64)
        kept = (text for text in train() if (_hash(text) < limit) == held_out)
    elif split == "validation":
        kept = validation()
    else:
        hashes = {_hash(text) for text in islice(_nonempty(validation()), max_documents)}
        kept = (text for text in train() if _hash(text) not in hashes)
    yield from islice(_nonempty(kept), max_documents)


def _nonempty(documents: Iterable[str]) -> Iterator[str]:
    return (text for text in documents if text and not text.isspace())


def _hash(text: str) -> int:
    """Hash a document to 64 bits, the same on every machine."""
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
