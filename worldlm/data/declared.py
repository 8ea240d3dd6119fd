"""The corpora of a recipe: those that nodes can name, with local files, and with partitions as their shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from worldlm.data.conversations import Conversations
from worldlm.data.corpora import Corpus
from worldlm.data.files import TextFiles
from worldlm.data.partition import Partition
from worldlm.data.records import RecordCorpus
from worldlm.data.shards import make_shards
from worldlm.topology.errors import suggest


def find_wholes(corpora: Mapping[str, Corpus], local: Mapping[str, str], root: Path) -> dict[str, Corpus]:
    """Return the corpora before they are split: of a partition, the corpus that it splits.

    Args:
        corpora: The corpora and partitions by name.
        local: Paths or glob patterns by name, to read instead, within the same limits; `{split}` in them stands for
            `train` and `validation`.
        root: Base folder of relative paths.

    Raises:
        ValueError: If a name is not that of a corpus.
    """
    if unknown := [name for name in local if name not in corpora]:
        no_corpus = f"local.{unknown[0]}: there is no corpus of that name{suggest(unknown[0], corpora)}"
        raise ValueError(f"{no_corpus}; known are {', '.join(corpora)}")
    wholes = {name: corpus.corpus if isinstance(corpus, Partition) else corpus for name, corpus in corpora.items()}
    wholes |= {name: _local(wholes[name], pattern) for name, pattern in local.items()}
    return {name: corpus.under(root) for name, corpus in wholes.items()}


def split_corpora(corpora: Mapping[str, Corpus], wholes: Mapping[str, Corpus]) -> dict[str, Corpus]:
    """Return the corpora that nodes can name: each partition is replaced by its shards.

    Args:
        corpora: The corpora and partitions by name.
        wholes: Name -> the corpus to use, or to split.

    Raises:
        ValueError: If a shard has the name of another corpus.
    """
    found: dict[str, Corpus] = {}
    for name, corpus in corpora.items():
        parts: Mapping[str, Corpus] = {name: wholes[name]}
        if isinstance(corpus, Partition):
            parts = make_shards(replace(corpus, corpus=wholes[name]), name)
        if taken := [part for part in parts if part in found or (part != name and part in corpora)]:
            raise ValueError(f"corpus {taken[0]!r} is declared, and is also a shard of the partition {name!r}")
        found |= parts
    return found


def _local(corpus: Corpus, pattern: str) -> TextFiles:
    train = pattern.replace("{split}", "train")
    validation = pattern.replace("{split}", "validation") if "{split}" in pattern else None
    if isinstance(corpus, Conversations):
        fraction = RecordCorpus.validation_fraction
        return replace(corpus, train=train, validation=validation, root=".", where={}, validation_fraction=fraction)
    return TextFiles(
        train=train,
        validation=validation,
        field=corpus.field if isinstance(corpus, RecordCorpus) else "text",
        person=corpus.person if isinstance(corpus, RecordCorpus) else None,
        skip_invalid=isinstance(corpus, RecordCorpus) and corpus.skip_invalid,
        **asdict(corpus.limits()),
    )
