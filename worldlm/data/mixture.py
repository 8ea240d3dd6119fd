"""Mixtures: several corpora of a recipe as one, such as all of them for a centralised run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from worldlm.data.corpora import Corpus, SplitName
from worldlm.topology.errors import suggest


@dataclass(frozen=True, kw_only=True)
class Mixture(Corpus):
    """Several corpora of the recipe as one, each with its own splits, for example for centralised training.

    A mixture is never packed itself. It reads the packed text of its parts, which other nodes may use on their own. The
    held-out text is that of all parts, every block once, regardless of the weights.
    """

    corpora: list[str] | None = None
    """Names of the corpora to mix; null mixes all corpora of the recipe that are not mixtures."""
    weights: list[float] | None = None
    """Share of the training tokens from each corpus, in the order of `corpora`: positive numbers of which only the
    ratios count. Shares are rounded to 1/10,000 and are at least that. Null takes every block once per pass."""

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.corpora is not None:
            _check_names(self.corpora)
        if self.weights is not None:
            _check_weights(self.weights, self.corpora)

    def members(self, known: Mapping[str, object]) -> list[str]:
        """Return the names of the corpora to mix, in the order of the weights.

        Args:
            known: All corpora of the recipe by name, mixtures included.

        Raises:
            ValueError: If a corpus is unknown or a mixture itself, one line each, or if there is no corpus.
        """
        plain = [name for name, corpus in known.items() if not isinstance(corpus, Mixture)]
        names = plain if self.corpora is None else self.corpora
        errors = []
        for name in names:
            if name not in known:
                listed = ", ".join(plain) or "none"
                errors.append(f"unknown corpus {name!r}; known are {listed}{suggest(name, plain)}")
            elif isinstance(known[name], Mixture):
                errors.append(f"corpus {name!r} is a mixture itself; name the corpora that it mixes")
        if not names:
            errors.append("there is nothing to mix: every corpus of the recipe is a mixture")
        if errors:
            raise ValueError("\n".join(errors))
        return list(names)

    def documents(self, split: SplitName) -> Iterator[str]:
        """Raise TypeError: a mixture has only the names of its corpora, not their text."""
        self._reject()

    def fingerprint(self) -> str:
        """Raise TypeError: a mixture has no text of its own."""
        self._reject()

    def _reject(self) -> NoReturn:
        raise TypeError("a mixture has no text of its own; pack and read its members")


def _check_names(corpora: list[str]) -> None:
    if not corpora:
        raise ValueError("corpora is empty: a mixture needs at least one corpus, or null for all")
    if "" in corpora:
        raise ValueError(f"corpora has an empty name at position {corpora.index('') + 1}")
    duplicates = [name for name in dict.fromkeys(corpora) if corpora.count(name) > 1]
    if duplicates:
        raise ValueError(f"corpora names {', '.join(duplicates)} more than once; give it a larger weight instead")


def _check_weights(weights: list[float], corpora: list[str] | None) -> None:
    if corpora is None:
        raise ValueError("weights needs corpora: name the corpora that they belong to")
    if len(weights) != len(corpora):
        raise ValueError(
            f"weights has {len(weights)} numbers for {len(corpora)} corpora; it needs one number for each corpus"
        )
    for name, weight in zip(corpora, weights, strict=True):
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"weights gives {name} {weight}; it must be a positive number")
    if len(corpora) == 1:
        raise ValueError("weights has no effect on a mixture of one corpus: remove it")
