"""Gathering: a source is read once for all corpora that use it, and each collects its documents for the tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import inf

from worldlm.data.corpora import EVERY, LeftOut, Record, SourceInterrupted, SplitName, naming, read_numbered
from worldlm.data.filling import Filling, Part
from worldlm.data.packed import SPLITS

_BATCH_CHARACTERS = 2**20
_MOST_WHOLE_BATCHES = 16
"""Corpora that are read together and collect full batches; more share the memory of so many."""
_MOST_TITLES = 5


def gather(group: Sequence[Filling]) -> Iterator[tuple[Part, list[str]]]:
    """Read a source once for all corpora that use it.

    Args:
        group: The corpora; the sources of their readings are equal.

    Yields:
        Parts of about a megabyte and their documents. `Filling.append` drops the documents beyond the limits.

    Raises:
        ValueError: If the source cannot be read, or a record is invalid; the message names the corpus.
    """
    queues = [_Queue(member, filling, len(group)) for member, filling in enumerate(group)]
    partitions: dict[object, dict[int, _Queue]] = {}
    for queue in queues:  # a corpus that is no shard is a partition of its own
        partitions.setdefault(queue.reading.taker or queue, {})[queue.reading.shard] = queue
    first, not_full = min(queue.skip for queue in queues), list(queues)
    record: Record | None = None
    for record in _records(group):
        if record.number < first:
            continue
        while not_full and not_full[-1].is_full():
            not_full.pop()
        if not not_full:
            break
        for shards in partitions.values():
            for queue in _takers(shards, record):
                if record.number >= queue.skip and not queue.is_full():
                    yield from queue.offer(record)
    for queue in queues:
        yield from queue.flush(record)


def _takers(shards: Mapping[int, _Queue], record: Record) -> Iterable[_Queue]:
    """Return the queues of a partition that a record is offered to."""
    taker = next(iter(shards.values())).reading.taker
    if taker is None:
        return shards.values()
    try:
        shard = taker(record)
    except ValueError:  # a shard that is offered the record reports it, with its name
        shard = EVERY
    if shard == EVERY:
        return shards.values()
    return (shards[shard],) if shard is not None and shard in shards else ()


class _Queue:
    """Documents of a corpus for the next part."""

    def __init__(self, member: int, filling: Filling, num_members: int) -> None:
        assert filling.reading is not None
        self.filling = filling
        self.reading = filling.reading
        self.skip = filling.skip
        self.part = Part(member)
        self.texts: list[str] = []
        self.num_characters = 0
        self.room = {split: filling.room(split) for split in SPLITS}
        self.most_characters = _BATCH_CHARACTERS * min(_MOST_WHOLE_BATCHES / num_members, 1)

    def is_full(self) -> bool:
        """Return whether the corpus is full, by the counts of documents and of the tokens encoded so far."""
        split: SplitName = "train" if "train" in self.reading.splits else "validation"
        return self.room[split] <= 0 or self.filling.room(split) <= 0

    def offer(self, record: Record) -> Iterator[tuple[Part, list[str]]]:
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
        self.part.values.append(chosen.value)
        self.part.targets.append(chosen.targets)
        self.texts.append(chosen.text)
        self.num_characters += len(chosen.text)
        if self.num_characters >= self._part_characters():
            yield from self.flush(record)

    def flush(self, record: Record | None) -> Iterator[tuple[Part, list[str]]]:
        """Yield the current part, which ends with a record, unless nothing was added to it."""
        if record is None or not (self.texts or self.part.left_out):
            return
        self.part.position, self.part.done = record.number + 1, record.done
        yield self.part, self.texts
        self.part, self.texts, self.num_characters = Part(self.part.member), [], 0

    def _part_characters(self) -> float:
        """Return the characters of a part: fewer near a limit in tokens, to read little beyond it."""
        left = (self.filling.limits.max_tokens or inf) - self.filling.packing.counts["train"].num_tokens
        return min(self.most_characters, max(left * 4, _BATCH_CHARACTERS / 64))


def _records(group: Sequence[Filling]) -> Iterator[Record]:
    assert group[0].reading is not None
    try:
        with naming(_titles(group)):
            yield from read_numbered(group[0].reading.source)
    except SourceInterrupted:
        raise
    except ValueError:
        for filling in group:
            filling.discard()
        raise


def _titles(group: Sequence[Filling]) -> str:
    more = f"; and {len(group) - _MOST_TITLES} more" if len(group) > _MOST_TITLES else ""
    return "; ".join(filling.title for filling in group[:_MOST_TITLES]) + more
