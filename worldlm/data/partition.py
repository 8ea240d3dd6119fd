"""Partitions: one corpus that is split over several nodes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from worldlm.data.corpora import Corpus, Record, SplitName
from worldlm.data.digests import digest
from worldlm.data.mixture import Mixture
from worldlm.data.records import RecordCorpus, single_value
from worldlm.data.sharding import dirichlet, log_normal, shard_of_number, shard_of_value, thresholds

_SETTINGS = ("num_shards", "by", "values", "alpha", "sizes", "size_skew", "seed")
_MAX_SHARDS = 100_000
_CACHED_VALUES = 10_000
"""Values of a field whose shares are remembered, not drawn again."""


@dataclass(frozen=True, kw_only=True)
class Partition(Corpus):
    """One corpus, split over several nodes.

    A partition `it` of three shards defines the corpora `it_1`, `it_2` and `it_3`. Every record of the corpus is in
    exactly one shard, and each shard is packed on its own, in one pass over the corpus for all of them. The shards
    depend only on the corpus and on these settings, neither on the topology nor on the seed of the run.

    - Without settings, the first record goes to the first shard, the next to the second, and so on in turn.
    - With `sizes` or `size_skew` also in turn, such that each shard gets its share of any stretch of the corpus.
    - With `by`, all records with the same value of a field go to one shard, chosen by a hash of the value.
    - With `by` and `values`, they go to the shard whose values are listed.
    - With `by` and `alpha`, of each value, each shard gets a share from a Dirichlet distribution.

    **Held-out text.** Without `by`, all shards have the same distribution and share the held-out text of the corpus.
    With `by`, held-out records are assigned to shards like training records, so that the held-out text of a shard
    follows its own distribution.

    **Limits.** `max_documents` and `max_tokens` of the corpus are divided over the shards in proportion to their sizes.
    `max_validation_documents` holds for each shard.
    """

    corpus: Corpus
    """The corpus to split, for example a `TextFiles`."""
    num_shards: int
    """Number of shards."""
    by: str | None = None
    """Split by the values of this field of the records, such as `lang` or `meta.author`."""
    values: list[str | list[str]] | None = None
    """For each shard the value, or the list of values, of `by` that it takes; records with other values are left
    out."""
    alpha: float | None = None
    """Concentration of the Dirichlet distribution, above 0: for every value of `by`, its shares in the shards are drawn
    from Dir(alpha, ..., alpha). Small numbers give each value to few shards, large ones spread it evenly. Sizes that
    are not equal multiply it: Dir(alpha * n * size), whose mean are the sizes. (Hsu et al. 2019, arXiv 1909.06335;
    Li et al. 2021, arXiv 2102.02079)"""
    sizes: list[float] | None = None
    """Relative sizes of the shards, above 0, such as `[5, 3, 1]`; by default equal."""
    size_skew: float = 0.0
    """Draw the sizes from a log-normal distribution: the standard deviation of their logarithm, at least 0. 1 makes two
    of three shards differ from the median by at most a factor 2.7."""
    seed: int = 0
    """Seed of all random choices: which shard a value goes to, the shares of a value, the sizes."""

    def __post_init__(self) -> None:
        """Check the settings."""
        for problem in _problems(self):
            raise ValueError(problem)

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        """The expected shares of the shards in the corpus, of sum 1, shape [num_shards]."""
        if self.sizes is None:
            return log_normal(self.num_shards, self.size_skew, self.seed)
        sizes = np.array(self.sizes, np.float64)
        return np.asarray(sizes / sizes.sum(), np.float64)

    def shard_of(self, record: Record) -> tuple[int | None, str]:
        """Return the shard of a record, from 0, or None if no shard takes it, and the value of `by`, or "".

        Raises:
            ValueError: If the record has no value, or several, in the field that `by` names.
        """
        if self.by is None:
            return (
                record.number % self.num_shards if self._is_even else shard_of_number(record.number, self._ends)
            ), ""
        value = single_value(record, self.by)
        if self.values is not None:
            return self._listed.get(value), value
        if self.alpha is None:
            return shard_of_value(value, self.seed, self._ends), value
        return shard_of_number(record.number, self._shares_of(value)), value

    def documents(self, split: SplitName) -> Iterator[str]:
        """Raise TypeError: only the shards of a partition are read."""
        raise TypeError("a partition has no text of its own; read its shards")

    def fingerprint(self) -> str:
        """Return a digest of the corpus and of the settings."""
        settings = {name: getattr(self, name) for name in _SETTINGS}
        return digest("partition", self.corpus.fingerprint(), settings)

    @cached_property
    def _is_even(self) -> bool:
        return self.sizes is None and self.size_skew == 0

    @cached_property
    def _ends(self) -> list[int]:
        return thresholds(self.shares)

    @cached_property
    def _listed(self) -> dict[str, int]:
        return {value: index for index, values in enumerate(self.values or ()) for value in _as_list(values)}

    @cached_property
    def _shares_of(self) -> Callable[[str], list[int]]:
        alpha = (self.alpha or 0.0) * self.num_shards * self.shares
        return lru_cache(_CACHED_VALUES)(lambda value: thresholds(dirichlet(alpha, self.seed, value)))


def _problems(p: Partition) -> Iterator[str]:
    """Yield what is wrong with the settings of a partition."""
    if isinstance(p.corpus, Partition | Mixture):
        yield f"corpus is a {type(p.corpus).__name__} itself; name the text to split"
    if not 1 <= p.num_shards <= _MAX_SHARDS:
        yield f"num_shards is {p.num_shards}; it must be from 1 to {_MAX_SHARDS:,}"
    if p.by is not None and not isinstance(p.corpus, RecordCorpus):
        yield f"by is {p.by!r}, but {type(p.corpus).__name__} has no records with fields; remove it"
    for name in ("values", "alpha"):
        if p.by is None and getattr(p, name) is not None:
            yield f"{name} needs by: name the field whose values are spread over the shards"
    if p.values is not None:
        yield from _problems_of_values(p, p.values)
    if p.alpha is not None and not 0 < p.alpha < math.inf:
        yield f"alpha is {p.alpha}; it must be a number above 0"
    if p.sizes is not None and len(p.sizes) != p.num_shards:
        yield f"sizes has {len(p.sizes)} numbers for {p.num_shards} shards"
    if p.sizes is not None and not all(0 < size < math.inf for size in p.sizes):
        yield f"sizes is {p.sizes}; all must be numbers above 0"
    if not 0 <= p.size_skew <= 10:
        yield f"size_skew is {p.size_skew}; it must be from 0 to 10"
    if p.sizes is not None and p.size_skew:
        yield "size_skew has no effect, because sizes is given: remove one of them"
    draws = p.size_skew or (p.by is not None and p.values is None)
    if p.seed and not draws:
        yield "seed has no effect, because nothing is drawn: remove it, or set size_skew or by"
    for name, whole in vars(p.corpus.limits()).items() if not isinstance(p.corpus, Partition | Mixture) else ():
        if name != "max_validation_documents" and whole is not None and whole < p.num_shards:
            yield f"{name} of the corpus is {whole}, less than one for each of {p.num_shards} shards"


def _problems_of_values(p: Partition, values: list[str | list[str]]) -> Iterator[str]:
    if len(values) != p.num_shards:
        yield f"values has {len(values)} entries for {p.num_shards} shards; a list within it is for one shard"
    counts = Counter(value for entry in values for value in _as_list(entry))
    if repeated := [value for value, number in counts.items() if number > 1]:
        yield f"values has {repeated[0]!r} more than once; a value is for one shard"
    if not all(map(_as_list, values)):
        yield "values has an empty list; every shard needs a value"
    if p.alpha is not None:
        yield "alpha has no effect, because values is given: remove one of them"
    if p.sizes is not None or p.size_skew:
        yield "sizes and size_skew have no effect, because values is given: remove them"


def _as_list(values: str | list[str]) -> list[str]:
    return [values] if isinstance(values, str) else list(values)
