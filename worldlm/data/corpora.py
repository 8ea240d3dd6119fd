"""Corpora: the text of a data node, as documents in two disjoint splits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from worldlm.data.chat_template import Spans
from worldlm.data.encoders import Encoder, TextEncoder
from worldlm.data.tokenizers import Tokenizer

SplitName = Literal["train", "validation"]
"""The two splits of every corpus."""


class Chosen(NamedTuple):
    """A document that a corpus uses."""

    split: SplitName
    """The split it belongs to."""
    text: str
    """Its text."""
    person: int = 0
    """A digest of the person whose text it is, not 0, to protect all text of a person together; 0 if none is named."""
    value: str = ""
    """The value of the field by which a partition splits; "" if there is none."""
    targets: Spans = ()
    """The parts of its text to predict; empty if all is. See `worldlm.data.encoders`."""


class LeftOut(Enum):
    """Why a record gives no document; such records are counted. Records that `where` does not select are not."""

    EMPTY = "empty"
    NULL = "null"
    MISSING = "without the field"
    NOT_TEXT = "not text"
    HELD_OUT = "also held out"
    NO_CONVERSATION = "not a conversation"
    NOT_RENDERED = "not rendered by the chat template"


class SourceInterrupted(ValueError):
    """A source that stopped part way, for example after a lost connection; a new attempt continues from there."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much text a corpus takes; a corpus ends when its training text is complete."""

    max_documents: int | None = None
    """Training documents."""
    max_tokens: int | None = None
    """Training tokens; the document that reaches the limit is the last."""
    max_validation_documents: int | None = None
    """Held-out documents; further ones are left out of both splits."""

    def __post_init__(self) -> None:
        """Check the limits."""
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1, or null")


class Record(NamedTuple):
    """A record of a source."""

    values: Any
    """The content of the record, such as the fields of a JSON object."""
    place: str
    """Its position, such as `FILE:LINE`, for errors."""
    done: float | None
    """Fraction of the source that is read, from 0 to 1; None if it is unknown."""
    number: int = 0
    """Its number in the source, from 0; set by `read_numbered`."""


class Source(Hashable, Protocol):
    """An origin of records. Equal sources have the same records, so that they are read once for all corpora."""

    def records(self) -> Iterator[Record]:
        """Read all records, always in the same order.

        Raises:
            SourceInterrupted: If the source stopped and a later attempt can continue from there.
            ValueError: If it cannot be read.
        """


EVERY = -1
"""Every shard of a partition takes a record."""


def read_numbered(source: Source) -> Iterator[Record]:
    """Read the records of a source and number them."""
    return (record._replace(number=number) for number, record in enumerate(source.records()))


@dataclass(frozen=True)
class Reading:
    """A pass over a source."""

    source: Source
    """The source."""
    splits: tuple[SplitName, ...]
    """The splits that its documents may belong to."""
    choose: Callable[[Record], Chosen | LeftOut | None]
    """Returns the document of a record and its split, why it has none, or None if the corpus does not select it."""
    taker: Callable[[Record], int | None] | None = None
    """Equal for all shards of a partition: returns the number of the only shard that takes a record, `EVERY` if all do,
    None if none does. So a record is not offered to each of many shards."""
    shard: int = 0
    """The number of the shard, from 0, if there is a `taker`."""


class Corpus(ABC):
    """The text of a data node. A recipe selects a subclass with `class_path`."""

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

    def limits(self) -> Limits:
        """Return how much text the corpus takes; by default all."""
        return Limits()

    def encoder(self, tokenizer: Tokenizer) -> Encoder:
        """Return how the documents become tokens; by default each is a text that is predicted as a whole.

        Raises:
            ValueError: If the tokenizer cannot be used for this corpus.
        """
        return TextEncoder(tokenizer)

    def why_empty(self, num_train: int) -> str:
        """Return why a split may have no documents, or an empty string.

        Args:
            num_train: Number of training documents.
        """
        return ""

    def readings(self) -> list[Reading]:
        """Return the passes over the sources of the corpus, in order; by default one for each split."""
        splits: tuple[SplitName, ...] = ("validation", "train")
        return [Reading(_Documents(self, split), (split,), _choose_all(split)) for split in splits]


@dataclass(frozen=True)
class _Documents:
    """The documents of a corpus as a source."""

    corpus: Corpus
    split: SplitName

    def records(self) -> Iterator[Record]:
        return (Record(text, "", None) for text in self.corpus.documents(self.split))


def _choose_all(split: SplitName) -> Callable[[Record], Chosen | LeftOut | None]:
    return lambda record: Chosen(split, record.values) if has_text(record.values) else LeftOut.EMPTY


def chosen_documents(corpus: Corpus, split: SplitName) -> Iterator[str]:
    """Read a split of a corpus by its readings, within its limits in documents.

    A limit in tokens has no effect here, because no tokenizer is given to count them.
    """
    limits = corpus.limits()
    readings = [reading for reading in corpus.readings() if split in reading.splits]
    chosen = (found for r in readings for found in map(r.choose, read_numbered(r.source)) if isinstance(found, Chosen))
    if split == "train":
        yield from islice((document.text for document in chosen if document.split == split), limits.max_documents)
        return
    num_train, num_validation = 0, 0
    for document in chosen:
        num_train += document.split == "train"
        if document.split == split:
            yield document.text
            num_validation += 1
        if num_train == limits.max_documents or num_validation == limits.max_validation_documents:
            return


@contextmanager
def naming(title: str) -> Iterator[None]:
    """Put a title, such as the names of node and corpus, before the message of a ValueError."""
    try:
        yield
    except SourceInterrupted as error:
        raise SourceInterrupted(f"{title}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{title}: {error}") from error


def has_text(text: str) -> bool:
    """Return whether a document has anything but white space."""
    return bool(text) and not text.isspace()
