"""Packing: a split of a corpus, tokenised once into one long array on disk.

The cache is content-addressed: the name of a file holds a digest of corpus, split and tokenizer.
Files appear whole or not at all, so several processes may pack into one folder.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from worldlm.data.corpora import Corpus, SplitName, digest
from worldlm.data.tokenizers import Tokenizer

_FORMAT = 1
_BATCH_CHARACTERS = 2**20


@dataclass(slots=True)
class _Counts:
    dtype: str
    num_tokens: int = 0
    num_bytes: int = 0
    num_documents: int = 0


@dataclass(frozen=True, eq=False)
class PackedCorpus:
    """Documents as tokens, each followed by the tokenizer's end of text."""

    path: Path
    """The file of tokens; a `.json` of the same name beside it holds the counts."""
    tokens: NDArray[np.integer]
    """All tokens, shape [num_tokens], uint16 or uint32, mapped from `path` and read-only."""
    num_bytes: int
    """Bytes of the text in UTF-8, without the ends of texts."""
    num_documents: int
    """Number of documents."""

    @classmethod
    def open(cls, path: Path) -> PackedCorpus:
        """Open a packed corpus.

        Raises:
            ValueError: If it is not there, or its size is not what it should be.
        """
        try:
            counts = _Counts(**json.loads(path.with_suffix(".json").read_text("utf-8")))
            tokens = np.memmap(path, dtype=counts.dtype, mode="r")
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no packed corpus: {error}") from error
        if len(tokens) != counts.num_tokens or path.stat().st_size != tokens.nbytes:
            raise ValueError(f"{path} holds {len(tokens)} tokens, not {counts.num_tokens}")
        return cls(path, tokens, counts.num_bytes, counts.num_documents)

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


def pack(corpus: Corpus, split: SplitName, tokenizer: Tokenizer, cache_dir: str | Path, name: str) -> PackedCorpus:
    """Tokenise a split of a corpus, or open it if that was done before.

    Args:
        corpus: The corpus.
        split: The split.
        tokenizer: The tokenizer.
        cache_dir: Folder to keep the tokens in; made if it is missing.
        name: What to call the corpus, in file names and progress.

    Raises:
        ValueError: If the text cannot be read, or there is none.
    """
    key = digest(_FORMAT, corpus.fingerprint(), split, tokenizer.fingerprint())
    stem = re.sub(r"[^\w.-]", "_", name)
    path = Path(cache_dir).expanduser() / f"{stem}-{split}-{key}.bin"
    with suppress(ValueError):  # missing or damaged
        return PackedCorpus.open(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".packing-", dir=path.parent) as folder:
        new = Path(folder) / path.name
        _write(corpus, split, tokenizer, new, f"{name} ({split})")
        for suffix in (".bin", ".json"):  # the counts last: they make it valid
            new.with_suffix(suffix).replace(path.with_suffix(suffix))
    return PackedCorpus.open(path)


def _write(corpus: Corpus, split: SplitName, tokenizer: Tokenizer, path: Path, title: str) -> None:
    counts = _Counts(dtype="uint16" if tokenizer.vocab_size <= 2**16 else "uint32")
    started = time.perf_counter()
    with path.open("wb") as stream, _progress(title) as progress:
        for texts in _batches(corpus.documents(split), counts):
            counts.num_tokens += _append(stream, texts, tokenizer, counts.dtype)
            progress.advance(counts)
    if not counts.num_documents:
        raise ValueError(f"there are no {split} documents")
    path.with_suffix(".json").write_text(json.dumps(asdict(counts)), "utf-8")
    seconds = time.perf_counter() - started
    print(f"Packed {title}: {_describe(counts)} in {seconds:.1f} s", file=sys.stderr)


def _append(stream: BinaryIO, texts: list[str], tokenizer: Tokenizer, dtype: str) -> int:
    end = np.array([tokenizer.end_of_text], dtype)
    parts: list[NDArray[np.integer]] = []
    for ids in tokenizer.encode_batch(texts):
        parts += (np.asarray(ids, dtype), end)
    tokens = np.concatenate(parts)
    stream.write(tokens.data)
    return len(tokens)


def _batches(documents: Iterable[str], counts: _Counts) -> Iterator[list[str]]:
    """Gather documents to batches of about a megabyte, counting what is handed out."""
    batch: list[str] = []
    size = 0
    for text in documents:
        try:
            num_bytes = len(text.encode())
        except UnicodeEncodeError:  # half a surrogate pair, which JSON may spell
            text = text.encode(errors="replace").decode()
            num_bytes = len(text.encode())
        counts.num_bytes += num_bytes
        counts.num_documents += 1
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _describe(counts: _Counts) -> str:
    millions, megabytes = counts.num_tokens / 1e6, counts.num_bytes / 1e6
    return f"{counts.num_documents} documents, {megabytes:.2f} MB, {millions:.2f} M tokens"


class _Progress(Protocol):
    def advance(self, counts: _Counts) -> None: ...


class _Silence:
    def advance(self, counts: _Counts) -> None:
        """Show nothing."""


class _Spinner:
    def __init__(self, title: str) -> None:
        from rich.console import Console

        self._title = title
        self.status = Console(stderr=True).status(f"Packing {title}")

    def advance(self, counts: _Counts) -> None:
        """Show how far the packing is."""
        self.status.update(f"Packing {self._title}: {_describe(counts)}")


@contextmanager
def _progress(title: str) -> Iterator[_Progress]:
    """Show the progress of a packing where somebody looks at a terminal."""
    if not sys.stderr.isatty():
        yield _Silence()
        return
    spinner = _Spinner(title)
    with spinner.status:
        yield spinner
