"""Filling a packed corpus: choosing the documents of a reading, within the limits of the corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worldlm.data.corpora import Chosen, Corpus, LeftOut, Reading, Record, Source, SourceInterrupted, SplitName, naming
from worldlm.data.display import show_left_out
from worldlm.data.encoding import Encoded
from worldlm.data.packing import SPLITS, Packing

_BATCH_CHARACTERS = 2**20


@dataclass(slots=True)
class Part:
    """About a megabyte of documents of one corpus for the tokenizer."""

    member: int
    """The index of the corpus among those that are read together."""
    is_train: list[bool] = field(default_factory=list)
    """For each document, whether it is a training document; the others are held out."""
    persons: list[int] = field(default_factory=list)
    """For each document, a digest of the person whose text it is, or 0."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Number of records that gave no document, by the reason."""
    position: int = 0
    """Number of records of the source up to the end of this part."""
    done: float | None = None
    """Fraction of the source that is read; None if it is unknown."""


class Filling:
    """A corpus that is being packed.

    Args:
        name: The corpus' name.
        title: The beginning of error messages.
        corpus: The corpus.
        folder: The folder of the packed corpus once it is complete.
        dtype: `uint16` or `uint32`.
    """

    def __init__(self, name: str, title: str, corpus: Corpus, folder: Path, dtype: str) -> None:
        self.name = name
        self.title = title
        self.corpus = corpus
        self.limits = corpus.limits()
        self.readings = corpus.readings()
        self._fingerprint = corpus.fingerprint()
        self.packing = Packing(folder, dtype)
        if self.packing.position[0] >= len(self.readings):  # the process was killed just before the folder was renamed
            self.packing.finish()

    @property
    def reading(self) -> Reading | None:
        """The current reading; None if the corpus is complete."""
        number = self.packing.position[0]
        return self.readings[number] if number < len(self.readings) else None

    @property
    def skip(self) -> int:
        """Number of records of the current reading that are already processed."""
        return self.packing.position[1]

    def rank(self, source: Source) -> int:
        """Return the index of a source among the remaining readings; -1 if it is not there."""
        left = [r.source for r in self.readings[self.packing.position[0] :]]
        return left.index(source) if source in left else -1

    def done(self, read: float | None) -> float | None:
        """Return the fraction of the training text that is packed, given the fraction of the source that is read."""
        counts = self.packing.counts["train"]
        shares = [0.0 if read is None or "train" not in self.readings[self.packing.position[0]].splits else read]
        if self.limits.max_documents:
            shares.append(counts.num_documents / self.limits.max_documents)
        if self.limits.max_tokens:
            shares.append(counts.num_tokens / self.limits.max_tokens)
        return min(max(shares), 1.0) if read is not None or len(shares) > 1 else None

    def append(self, encoded: Encoded[Part]) -> None:
        """Pack the documents of a part, within the limits of the corpus."""
        part = encoded.tag
        train = np.array(part.is_train, bool)
        held_out = ~train
        before = _sum_before(train * encoded.num_tokens)
        missing = (self.limits.max_tokens or inf) - self.packing.counts["train"].num_tokens
        accepted = (before < missing) & (_sum_before(train) < self.room("train"))
        accepted &= train | (_sum_before(held_out) < self.room("validation"))
        for split, mask in (("train", train & accepted), ("validation", held_out & accepted)):
            if mask.any():
                tokens = encoded.tokens if mask.all() else encoded.tokens[np.repeat(mask, encoded.num_tokens)]
                persons = np.array(part.persons, np.uint64)[mask]
                num_bytes = int(encoded.num_bytes[mask].sum())
                self.packing.append(split, tokens, num_bytes, encoded.num_tokens[mask], persons)  # type: ignore[arg-type]
        splits = self.readings[self.packing.position[0]].splits
        left_out = self.packing.counts["train" if "train" in splits else "validation"].left_out
        for reason, number in part.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + number
        self.packing.position = (self.packing.position[0], part.position)

    def end_reading(self) -> None:
        """Start the next reading, or complete the corpus after the last one.

        Raises:
            ValueError: If the corpus has no text, or its text changed while it was read.
        """
        self.packing.position = (self.packing.position[0] + 1, 0)
        if self.reading is not None:
            self.packing.save()
            return
        with naming(self.title):
            if self.corpus.fingerprint() != self._fingerprint:
                self.discard()
                raise ValueError("the text was changed while it was read; run again")
        for split in SPLITS:
            if not self.packing.counts[split].num_documents:
                self.discard()
                reason = self.corpus.why_empty(self.packing.counts["train"].num_documents)
                left_out = f"; left out: {text}" if (text := show_left_out(self.packing.counts)) else ""
                raise ValueError(f"{self.title} ({split}): there are no {split} documents{reason}{left_out}")
        self.packing.finish()

    def discard(self) -> None:
        """Delete the packed text, because the source is invalid."""
        self.packing.remove()

    def suspend(self) -> None:
        """Stop packing. The text packed so far is saved for a later attempt; an empty folder is removed."""
        if not self.packing.folder.exists():  # complete, or discarded
            return
        if any(counts.num_documents for counts in self.packing.counts.values()):
            with suppress(OSError):  # such as a full disk; the previous save remains
                self.packing.save()
            self.packing.close()
        else:
            self.packing.remove()

    def choose(self, reading: Reading, record: Record) -> Chosen | LeftOut | None:
        """Return the document of a record, why it has none, or None if the corpus does not select it.

        Raises:
            ValueError: If the record is invalid for the corpus.
        """
        try:
            with naming(self.title):
                return reading.choose(record)
        except SourceInterrupted:
            raise
        except ValueError:
            self.discard()
            raise

    def room(self, split: SplitName) -> float:
        """Return how many more documents of a split the limits allow."""
        if split == "validation":
            return (self.limits.max_validation_documents or inf) - self.packing.counts["validation"].num_documents
        counts = self.packing.counts["train"]
        if counts.num_tokens >= (self.limits.max_tokens or inf):
            return 0
        return (self.limits.max_documents or inf) - counts.num_documents


def gather(group: Sequence[Filling]) -> Iterator[tuple[Part, list[str]]]:
    """Read a source once for all corpora that use it.

    Args:
        group: The corpora; the sources of their readings are equal.

    Yields:
        Parts of about a megabyte and their documents. `Filling.append` drops the documents beyond the limits.

    Raises:
        ValueError: If the source cannot be read, or a record is invalid; the message names the corpus.
    """
    queues = [_Queue(member, filling) for member, filling in enumerate(group)]
    first = min(queue.skip for queue in queues)
    number = -1
    record: Record | None = None
    for number, record in enumerate(_records(group)):
        if number < first:
            continue
        if all(queue.is_full() for queue in queues):
            break
        for queue in queues:
            if number >= queue.skip and not queue.is_full():
                yield from queue.offer(record, number)
    for queue in queues:
        yield from queue.flush(number + 1, record and record.done)


class _Queue:
    """Documents of a corpus for the next part."""

    def __init__(self, member: int, filling: Filling) -> None:
        assert filling.reading is not None
        self.filling = filling
        self.reading = filling.reading
        self.skip = filling.skip
        self.part = Part(member)
        self.texts: list[str] = []
        self.num_characters = 0
        self.room = {split: filling.room(split) for split in SPLITS}

    def is_full(self) -> bool:
        """Return whether the corpus is full, by the counts of documents and of the tokens encoded so far."""
        split: SplitName = "train" if "train" in self.reading.splits else "validation"
        return self.room[split] <= 0 or self.filling.room(split) <= 0

    def offer(self, record: Record, number: int) -> Iterator[tuple[Part, list[str]]]:
        """Add the document of a record if the corpus uses it; yield a part when it is complete."""
        chosen = self.filling.choose(self.reading, record)
        if isinstance(chosen, LeftOut):
            self.part.left_out[chosen.value] += 1
            return
        if chosen is None or self.room[chosen.split] <= 0:
            return
        self.room[chosen.split] -= 1
        self.part.is_train.append(chosen.split == "train")
        self.part.persons.append(chosen.person)
        self.texts.append(chosen.text)
        self.num_characters += len(chosen.text)
        if self.num_characters >= self._part_characters():
            yield from self.flush(number + 1, record.done)

    def flush(self, position: int, done: float | None) -> Iterator[tuple[Part, list[str]]]:
        """Yield the current part, unless nothing was added to it."""
        if not self.texts and not self.part.left_out:
            return
        self.part.position, self.part.done = position, done
        yield self.part, self.texts
        self.part, self.texts, self.num_characters = Part(self.part.member), [], 0

    def _part_characters(self) -> float:
        """Return the characters of a part: fewer near a limit in tokens, to read little beyond it."""
        left = (self.filling.limits.max_tokens or inf) - self.filling.packing.counts["train"].num_tokens
        return min(_BATCH_CHARACTERS, max(left * 4, _BATCH_CHARACTERS / 64))


def _records(group: Sequence[Filling]) -> Iterator[Record]:
    assert group[0].reading is not None
    try:
        with naming("; ".join(filling.title for filling in group)):
            yield from group[0].reading.source.records()
    except SourceInterrupted:
        raise
    except ValueError:
        for filling in group:
            filling.discard()
        raise


def _sum_before(values: NDArray[np.integer] | NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return for each value the sum of those before it, int64, same shape."""
    return np.cumsum(values, dtype=np.int64) - values
