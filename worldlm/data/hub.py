"""Data sets of the Hugging Face Hub as corpora."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from worldlm.data.corpora import Corpus, SplitName, check_split, digest, split_documents
from worldlm.data.readers import text_of


@dataclass(frozen=True, kw_only=True)
class HubDataset(Corpus):
    """A data set of the Hugging Face Hub, or of a folder laid out like one.

    It is streamed once, while it is packed, and never stored as it is. Name a `revision`: the cache
    of packed text cannot see that a data set changed on the Hub.
    """

    path: str
    """The data set's name on the Hub, such as `allenai/c4`, or a folder."""
    name: str | None = None
    """The configuration of the data set, such as `en`."""
    revision: str | None = None
    """A commit or tag of the data set."""
    train: str = "train"
    """The data set's split to train on."""
    validation: str | None = None
    """The held-out split; without it, documents of `train` are held out by a hash of their text."""
    field: str = "text"
    """The column that holds a document's text."""
    validation_fraction: float = 0.05
    """Share of the documents to hold out, in (0, 1), where `validation` is not given."""
    max_documents: int | None = None
    """Read at most this many documents of either split."""
    cache_dir: str | None = None
    """Where `datasets` keeps its files; null is its own default."""

    def __post_init__(self) -> None:
        """Check the settings."""
        check_split(self.validation, self.validation_fraction, self.max_documents)

    def documents(self, split: SplitName) -> Iterator[str]:
        """Stream the documents of a split; see `Corpus.documents`."""
        held_out = self.validation
        return split_documents(
            split,
            train=lambda: self._read(self.train),
            validation=None if held_out is None else lambda: self._read(held_out),
            validation_fraction=self.validation_fraction,
            max_documents=self.max_documents,
        )

    def fingerprint(self) -> str:
        """Digest the settings."""
        return digest(repr(self))

    def _read(self, split: str) -> Iterator[str]:
        import datasets  # type: ignore[import-untyped, unused-ignore]

        place = f"data set {self.path!r}, split {split!r}"
        try:
            rows = datasets.load_dataset(
                self.path,
                self.name,
                revision=self.revision,
                split=split,
                streaming=True,
                cache_dir=self.cache_dir,
            )
        except (OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{place}: {reason}") from error
        for number, row in enumerate(rows, 1):
            yield text_of(row, self.field, f"{place}, row {number}")
