"""The shards of a partition: corpora that are read together, and each record is looked at once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from worldlm.data.corpora import (
    EVERY,
    Chosen,
    Corpus,
    LeftOut,
    Limits,
    Reading,
    Record,
    Source,
    SplitName,
    chosen_documents,
)
from worldlm.data.digests import digest
from worldlm.data.encoders import Encoder
from worldlm.data.files import FileSource
from worldlm.data.partition import Partition
from worldlm.data.records import RecordCorpus
from worldlm.data.sharding import divide
from worldlm.data.tokenizers import Tokenizer

_Found: TypeAlias = tuple[Chosen | LeftOut | None, int | None]
"""What the corpus takes of a record, and the shard that it belongs to: a number from 0, `EVERY`, or None."""


def make_shards(partition: Partition, name: str) -> dict[str, Shard]:
    """Return the shards of a partition by name: `NAME_1`, `NAME_2`, ..."""
    passes = _Passes(partition)
    return {
        f"{name}_{index + 1}": Shard(partition=partition, index=index, passes=passes)
        for index in range(partition.num_shards)
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard(Corpus):
    """A shard of a partition, made by `make_shards`."""

    partition: Partition
    """The partition."""
    index: int
    """The number of the shard, from 0."""
    passes: _Passes
    """The passes over the corpus, the same for all shards."""

    def documents(self, split: SplitName) -> Iterator[str]:
        """Read the documents of a split; see `Corpus.documents`. `max_tokens` has no effect here."""
        return chosen_documents(self, split)

    def fingerprint(self) -> str:
        """Return a digest of the partition and the number of the shard."""
        return digest("shard", self.partition.fingerprint(), self.index)

    def encoder(self, tokenizer: Tokenizer) -> Encoder:
        """Return how the documents of the corpus become tokens."""
        return self.partition.corpus.encoder(tokenizer)

    def limits(self) -> Limits:
        """Return the shard's part of the limits of the corpus."""
        limits = self.partition.corpus.limits()
        parts = {
            name: max(divide(whole, self.partition.shares)[self.index], 1)
            for name in ("max_documents", "max_tokens")
            if (whole := getattr(limits, name)) is not None
        }
        return replace(limits, **parts)

    def readings(self) -> list[Reading]:
        """Return one pass for each pass over the corpus, from sources that are equal for all shards."""
        return [
            Reading(found.source, found.splits, self._choose(found), found.taker, self.index)
            for found in self.passes.current()
        ]

    def why_empty(self, num_train: int) -> str:
        """Return why the corpus has no text, or that this shard has none of it."""
        if reason := self.partition.corpus.why_empty(num_train):
            return reason
        return f"; shard {self.index + 1} of {self.partition.num_shards} gets none: {_remedy(self)}"

    def _choose(self, found: _Pass) -> Callable[[Record], Chosen | LeftOut | None]:
        return lambda record: found.choose(record, self.index)


class _Passes:
    """The passes over the corpus of a partition; they are made again if its text changed.

    Args:
        partition: The partition.
    """

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._fingerprint = ""
        self._current: list[_Pass] = []

    def current(self) -> list[_Pass]:
        """Return the passes."""
        corpus = self._partition.corpus
        if (fingerprint := corpus.fingerprint()) != self._fingerprint:
            if self._partition.by is not None and isinstance(corpus, RecordCorpus):
                # any held-out record may be in a shard, so no training document may be equal to one
                corpus = replace(corpus, max_validation_documents=None)
            self._current = [_Pass(self._partition, reading) for reading in corpus.readings()]
            self._fingerprint = fingerprint
        return self._current


class _Pass:
    """A pass over the corpus of a partition.

    Args:
        partition: The partition.
        reading: The reading of its corpus.
    """

    def __init__(self, partition: Partition, reading: Reading) -> None:
        self.source = _with_field(reading.source, partition.by)
        self.splits = reading.splits
        self._partition = partition
        self._reading = reading
        self._last: tuple[Record | None, _Found] = (None, (None, None))

    def taker(self, record: Record) -> int | None:
        """Return the shard that takes a record; see `Reading.taker`."""
        return self._find(record)[1]

    def choose(self, record: Record, index: int) -> Chosen | LeftOut | None:
        """Return what a shard takes of a record: its document, why it has none, or None if it is not of the shard."""
        chosen, shard = self._find(record)
        return chosen if shard in (index, EVERY) else None

    def _find(self, record: Record) -> _Found:
        if self._last[0] is not record:  # several shards may ask about a record, one after the other
            self._last = (record, self._look_at(record))
        return self._last[1]

    def _look_at(self, record: Record) -> _Found:
        chosen, counted_by = self._reading.choose(record), record.number % self._partition.num_shards
        if chosen is None:
            return None, None
        if isinstance(chosen, LeftOut):
            return chosen, counted_by
        if chosen.split == "validation" and self._partition.by is None:
            return chosen, EVERY
        try:
            shard, value = self._partition.shard_of(record)
        except ValueError as error:
            if getattr(self._partition.corpus, "skip_invalid", False):
                return LeftOut.MISSING, counted_by
            raise ValueError(f"{error}; to leave such records out, set skip_invalid: true") from None
        return chosen._replace(value=value), shard


def _with_field(source: Source, name: str | None) -> Source:
    """Return a source that also reads a field; only readers of files leave fields out."""
    if name is None or not isinstance(source, FileSource) or name in source.fields:
        return source
    return replace(source, fields=(source.fields[0], *sorted({*source.fields[1:], name})))


def _remedy(shard: Shard) -> str:
    partition = shard.partition
    if partition.values is not None:
        return f"it takes records whose {partition.by} is {partition.values[shard.index]!r}"
    if partition.alpha is not None:
        return "raise alpha, or lower num_shards"
    return "give more text, or lower num_shards"
