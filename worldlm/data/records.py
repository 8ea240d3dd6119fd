"""Corpora of records, such as lines of JSON or rows of a table: selecting records and holding out documents."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field as dataclass_field  # RecordCorpus has a setting with the name field
from datetime import date, time
from functools import cached_property
from itertools import islice

import numpy as np

from worldlm.data.corpora import (
    Chosen,
    Corpus,
    LeftOut,
    Limits,
    Reading,
    Record,
    Source,
    SplitName,
    chosen_documents,
    has_text,
)
from worldlm.data.digests import digest
from worldlm.topology.errors import join_names

_DEFAULT_FRACTION = 0.05
_NUM_LOOKED_AT = 1000


@dataclass(frozen=True, kw_only=True)
class RecordCorpus(Corpus):
    """A corpus whose documents are a field of records.

    Documents without text are left out. A training document that is also a validation document is left out too. A byte
    order mark at the beginning of a document is not part of its text.
    """

    field: str = "text"
    """The field with the text of a document; `a.b` is field b within field a."""
    where: dict[str, str | list[str]] = dataclass_field(default_factory=dict)
    """Use only records whose fields have these values (a value, or any of a list), such as
    `meta.pile_set_name: Pile-CC`. Values are compared as text: `2020` is the number and the text. A list in a record
    has the values of all its items; a null or missing field has none. Corpora that differ only in this are read
    together, in one pass."""
    person: str | None = None
    """The field that names the person whose text a document is, such as `author.id`, for `example_privacy` with
    `unit: person`."""
    skip_invalid: bool = False
    """Whether to leave out and count records whose text is null, missing or of another type, instead of stopping at the
    first of them."""
    validation_fraction: float = _DEFAULT_FRACTION
    """Fraction of the documents to hold out by a hash of their text, in (0, 1), if the corpus has no validation text of
    its own."""
    max_documents: int | None = None
    """Train on at most this many documents."""
    max_tokens: int | None = None
    """Train on about this many tokens: the document that reaches the limit is the last."""
    max_validation_documents: int | None = None
    """Hold out at most this many documents."""

    def __post_init__(self) -> None:
        """Check the settings."""
        self.limits()
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction is {self.validation_fraction}; it must be in (0, 1)")
        if self.has_validation() and self.validation_fraction != _DEFAULT_FRACTION:
            raise ValueError("validation_fraction has no effect if validation is given: remove one of them")

    @abstractmethod
    def has_validation(self) -> bool:
        """Return whether the held-out text is separate from the training text."""

    @abstractmethod
    def source(self, split: SplitName) -> Source:
        """Return the source of a split's records; `validation` is allowed only if it has its own source."""

    def documents(self, split: SplitName) -> Iterator[str]:
        """Read the documents of a split; see `Corpus.documents`. `max_tokens` has no effect here."""
        return chosen_documents(self, split)

    def fingerprint(self) -> str:
        """Return a digest of the settings."""
        return digest(repr(self))

    def limits(self) -> Limits:
        """Return how much text the corpus takes."""
        return Limits(
            max_documents=self.max_documents,
            max_tokens=self.max_tokens,
            max_validation_documents=self.max_validation_documents,
        )

    def readings(self) -> list[Reading]:
        """Return one pass over all text, or a pass for each split if they are separate."""
        if not self.has_validation():
            return [Reading(self.source("train"), ("train", "validation"), self._choose(self._by_hash))]
        validation = Reading(self.source("validation"), ("validation",), self._choose(lambda _: "validation"))
        held_out = _HeldOut(validation, self.max_validation_documents)
        choose = self._choose(lambda text: LeftOut.HELD_OUT if text in held_out else "train")
        return [validation, Reading(self.source("train"), ("train",), choose)]

    def why_empty(self, num_train: int) -> str:
        """Return the values of the fields of `where` in the first records, or the number of documents."""
        if num_train and not self.has_validation():
            return f"; none of {num_train} documents is held out; raise validation_fraction or give more text"
        if num_train or not self.where:
            return ""
        records = list(islice(self.source("train").records(), _NUM_LOOKED_AT))
        seen = []
        for name in self.where:
            values = {repr(v) if isinstance(v, str) else _text(v) for record in records for v in _found(record, name)}
            seen.append(f"{name} is {join_names(sorted(values)) or 'missing'}")
        return f"; where requires {self.where}, but in the first {len(records)} records {'; '.join(seen)}"

    def fields(self) -> tuple[str, ...]:
        """Return the fields of a record that are used; the field of the text comes first."""
        return (self.field, *sorted({*self.where, *([self.person] if self.person else [])} - {self.field}))

    def _choose(self, split_of: Callable[[str], SplitName | LeftOut]) -> Callable[[Record], Chosen | LeftOut | None]:
        required = {
            name: set(map(_text, values if isinstance(values, list | tuple) else [values]))
            for name, values in self.where.items()
        }

        def choose(record: Record) -> Chosen | LeftOut | None:
            if not all(_has(record, name, values) for name, values in required.items()):
                return None
            text = self._document(record)
            split = split_of(text) if isinstance(text, str) else text
            return split if isinstance(split, LeftOut) else Chosen(split, str(text), self._person(record))

        return choose

    def _document(self, record: Record) -> str | LeftOut:
        """Return the text of a record, or why it has none."""
        try:
            value = value_of(record, self.field)
        except NoField as error:
            reason, problem = LeftOut.MISSING, str(error)
        else:
            if isinstance(value, bytes):  # some programs write text into tables as binary columns
                with suppress(UnicodeDecodeError):
                    value = value.decode()
            if isinstance(value, str):
                text = value.removeprefix("\ufeff")
                return text if has_text(text) else LeftOut.EMPTY
            reason = LeftOut.NULL if value is None else LeftOut.NOT_TEXT
            kind = "null" if value is None else f"{type(value).__name__}, not text"
            problem = f"{record.place}: field {self.field!r} is {kind}"
        if self.skip_invalid:
            return reason
        raise ValueError(f"{problem}; to leave such records out, set skip_invalid: true")

    def _person(self, record: Record) -> int:
        """Return a digest of the person who is named in a record, or 0 if the corpus names none."""
        if self.person is None:
            return 0
        value = value_of(record, self.person)
        if value is None or isinstance(value, Mapping | list) or value == "":
            raise ValueError(f"{record.place}: field {self.person!r} is {value!r}, which names no person")
        return _hash(str(value)) or 1

    def _by_hash(self, text: str) -> SplitName:
        return "validation" if _hash(text) < int(self.validation_fraction * 2**64) else "train"


class _HeldOut:
    """The documents of a validation text, as a hash of 8 bytes each; read when first needed."""

    def __init__(self, reading: Reading, max_documents: int | None) -> None:
        self._reading = reading
        self._max_documents = max_documents

    @cached_property
    def _hashes(self) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        chosen = map(self._reading.choose, self._reading.source.records())
        texts = islice((document.text for document in chosen if isinstance(document, Chosen)), self._max_documents)
        return np.unique(np.fromiter(map(_hash, texts), np.uint64))

    def __contains__(self, text: str) -> bool:
        value = np.uint64(_hash(text))
        index = int(np.searchsorted(self._hashes, value))
        return index < len(self._hashes) and self._hashes[index] == value


class NoField(ValueError):
    """A record has no such field."""


def value_of(record: Record, name: str) -> object:
    """Look up a field, or a field within fields; a field within null is null.

    Raises:
        NoField: If the record has no such field; the message begins with the position of the record.
    """
    values = record.values
    if not isinstance(values, Mapping):
        raise NoField(f"{record.place}: is {type(values).__name__}, not an object with the field {name!r}")
    if name in values:
        return values[name]
    value: object = values
    for part in name.split("."):
        if value is None:
            return None
        if not isinstance(value, Mapping) or part not in value:
            known = ", ".join(map(repr, islice(values, 8))) or "none"
            raise NoField(f"{record.place}: no field {name!r}; fields are {known}")
        value = value[part]
    return value


def single_value(record: Record, name: str) -> str:
    """Return the value of a field as the text that `where` compares.

    Raises:
        ValueError: If the record has no such field, or the field has no value or several; the message begins with the
            position of the record.
    """
    value = value_of(record, name)
    if value is None or value == "" or isinstance(value, Mapping | list | tuple):
        raise ValueError(f"{record.place}: field {name!r} is {value!r}, which is not a single value")
    return _text(value)


def _has(record: Record, name: str, required: Set[str]) -> bool:
    """Return whether a field has one of some values.

    Raises:
        ValueError: If the field is a mapping; the message begins with the position of the record.
    """
    for value in _found(record, name):
        if isinstance(value, Mapping):
            within = f"; name a field within it, such as {f'{name}.{next(iter(value))}'!r}" if value else ""
            raise ValueError(f"{record.place}: where: field {name!r} is a mapping{within}")
        if value is not None and not required.isdisjoint((_text(value), str(value))):
            return True
    return False


def _found(record: Record, name: str) -> Iterator[object]:
    """Yield the values of a field, or of a field within fields; a list stands for its items."""
    values = record.values
    is_whole = isinstance(values, Mapping) and name in values
    return _leaves(values[name], ()) if is_whole else _leaves(values, tuple(name.split(".")))


def _leaves(value: object, names: tuple[str, ...]) -> Iterator[object]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item, names)
    elif not names:
        yield value
    elif isinstance(value, Mapping) and names[0] in value:
        yield from _leaves(value[names[0]], names[1:])


def _text(value: object) -> str:
    """Return the text of a value as JSON writes it, a date as in `2024-01-31`; the number 2020.0 is `2020`."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value.isoformat() if isinstance(value, date | time) else str(value)


def _hash(text: str) -> int:
    """Hash a document to 64 bits, the same on every machine."""
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
