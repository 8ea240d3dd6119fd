"""Text in memory as a corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from worldlm.data.corpora import Record, SplitName
from worldlm.data.digests import digest
from worldlm.data.records import RecordCorpus


@dataclass(frozen=True, eq=False)
class MemorySource:
    """The records of a list or a data set in memory."""

    records_: Iterable[Any]
    """Texts, or mappings of fields."""
    field: str
    """The field of a text."""

    def records(self) -> Iterator[Record]:
        """Read the records in order; see `Source.records`."""
        for number, record in enumerate(self.records_):
            yield Record({self.field: record} if isinstance(record, str) else record, f"record {number}", None)


@dataclass(frozen=True, kw_only=True, repr=False)
class Texts(RecordCorpus):
    """Texts that a Python program has in memory.

    They are a list of texts, a list of dicts, or a `datasets.Dataset`, whose records have the text in `field`.

    Raises:
        ValueError: If one text is given instead of a list.
    """

    train: Any
    """The training texts."""
    validation: Any = None
    """The held-out texts; without them, texts of `train` are held out by a hash."""

    def __post_init__(self) -> None:
        """Check the settings."""
        for name, records in (("train", self.train), ("validation", self.validation)):
            if isinstance(records, str | Mapping) or not (records is None or hasattr(records, "__len__")):
                raise ValueError(f"{name} of Texts is a {type(records).__name__}: give a list of texts")
        RecordCorpus.__post_init__(self)

    def has_validation(self) -> bool:
        """Return whether held-out texts are given."""
        return self.validation is not None

    def source(self, split: SplitName) -> MemorySource:
        """Return the records of a split."""
        return MemorySource(self.train if split == "train" else self.validation, self.field)

    def fingerprint(self) -> str:
        """Return a digest of the settings and of all texts."""
        content = hashlib.blake2b(digest_size=16)
        for records in (self.train, self.validation or ()):
            for record in records:
                content.update(repr(record).encode("utf-8", "surrogatepass"))
            content.update(b"\0")
        settings = {name: value for name, value in vars(self).items() if name not in ("train", "validation")}
        return digest(type(self).__name__, settings, content.hexdigest())
