"""Filling a packed corpus, within its limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worldlm.data.chat_template import Spans
from worldlm.data.corpora import Chosen, Corpus, LeftOut, Reading, Record, Source, SourceInterrupted, SplitName, naming
from worldlm.data.display import show_left_out
from worldlm.data.encoders import Encoder, Tokens
from worldlm.data.packed import SPLITS
from worldlm.data.packing import Packing

_MOST_VALUES = 1000

OTHER_VALUES = "others"
"""Stands for the values of a field beyond the first thousand."""


@dataclass(slots=True)
class Part:
    """About a megabyte of documents of one corpus for the tokenizer."""

    member: int
    """The index of the corpus among those that are read together."""
    is_train: list[bool] = field(default_factory=list)
    """For each document, whether it is a training document; the others are held out."""
    persons: list[int] = field(default_factory=list)
    """For each document, a digest of the person whose text it is, or 0."""
    targets: list[Spans] = field(default_factory=list)
    """For each document, the parts of its text to predict; empty if all is."""
    values: list[str] = field(default_factory=list)
    """For each document, the value of the field that a partition splits by, or ""."""
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
        encoder: What turns its documents into tokens.
    """

    def __init__(self, name: str, title: str, corpus: Corpus, folder: Path, encoder: Encoder) -> None:
        self.name = name
        self.title = title
        self.corpus = corpus
        self.limits = corpus.limits()
        self.readings = corpus.readings()
        self._fingerprint = corpus.fingerprint()
        self.encoder = encoder
        self.packing = Packing(folder, encoder.dtype, encoder.has_targets)
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

    def encode(self, part: Part, texts: list[str]) -> Tokens:
        """Encode the documents of a part.

        Raises:
            ValueError: If the tokenizer fails.
        """
        return self.encoder.encode(texts, part.targets)

    def append(self, part: Part, encoded: Tokens) -> None:
        """Pack the documents of a part, within the limits of the corpus."""
        train = np.array(part.is_train, bool)
        held_out = ~train
        before = _sum_before(train * encoded.num_tokens)
        missing = (self.limits.max_tokens or inf) - self.packing.counts["train"].num_tokens
        accepted = (before < missing) & (_sum_before(train) < self.room("train"))
        accepted &= train | (_sum_before(held_out) < self.room("validation"))
        for split, mask in (("train", train & accepted), ("validation", held_out & accepted)):
            if mask.any():
                of_tokens = slice(None) if mask.all() else np.repeat(mask, encoded.num_tokens)
                tokens = encoded.tokens[of_tokens]
                targets = None if encoded.targets is None else encoded.targets[of_tokens]
                persons = np.array(part.persons, np.uint64)[mask]
                num_bytes = int(encoded.num_bytes[mask].sum())
                self.packing.append(split, tokens, num_bytes, encoded.num_tokens[mask], persons, targets)  # type: ignore[arg-type]
                self._count_values(split, part.values, mask * encoded.num_tokens)  # type: ignore[arg-type]
        splits = self.readings[self.packing.position[0]].splits
        left_out = self.packing.counts["train" if "train" in splits else "validation"].left_out
        for reason, number in part.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + number
        self.packing.position = (self.packing.position[0], part.position)

    def _count_values(self, split: SplitName, values: Sequence[str], num_tokens: NDArray[np.int64]) -> None:
        """Add the tokens of documents to those of their values, for a histogram of bounded size."""
        counts = self.packing.counts[split].values
        for value, number in zip(values, num_tokens, strict=True):
            if value and number:
                key = value if value in counts or len(counts) < _MOST_VALUES else OTHER_VALUES
                counts[key] = counts.get(key, 0) + int(number)

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
                chosen = reading.choose(record)
                return self._render(chosen, record) if isinstance(chosen, Chosen) else chosen
        except SourceInterrupted:
            raise
        except ValueError:
            self.discard()
            raise

    def _render(self, chosen: Chosen, record: Record) -> Chosen | LeftOut:
        try:
            text, targets = self.encoder.render(chosen.text)
        except ValueError as error:
            if self.encoder.skip_invalid:
                return LeftOut.NOT_RENDERED
            remedy = "to leave such records out, set skip_invalid: true"
            raise ValueError(f"{record.place}: {error}; {remedy}") from error
        return chosen._replace(text=text, targets=targets)

    def room(self, split: SplitName) -> float:
        """Return how many more documents of a split the limits allow."""
        if split == "validation":
            return (self.limits.max_validation_documents or inf) - self.packing.counts["validation"].num_documents
        counts = self.packing.counts["train"]
        if counts.num_tokens >= (self.limits.max_tokens or inf):
            return 0
        return (self.limits.max_documents or inf) - counts.num_documents


def _sum_before(values: NDArray[np.integer] | NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return for each value the sum of those before it, int64, same shape."""
    return np.cumsum(values, dtype=np.int64) - values
