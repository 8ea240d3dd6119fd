"""Corpora from data sets of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worldlm.data.corpora import Record, SourceInterrupted, SplitName
from worldlm.data.records import RecordCorpus
from worldlm.topology.errors import first_line

_TIMEOUT = 20.0
"""Seconds to wait for the first response of the Hub."""


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """The rows of a split of a data set; the fields are those of `HubDataset`."""

    path: str
    name: str | None
    data_files: tuple[str, ...] | None
    revision: str | None
    split: str
    streaming: bool
    cache_dir: str | None

    def records(self) -> Iterator[Record]:
        """Read the rows; see `Source.records`."""
        place = f"data set {self.path!r}, split {self.split!r}"
        number = 0
        rows = self._open(place)
        while True:
            try:
                row = next(rows, None)
            except Exception as error:  # errors of the network, the format and the libraries have no common class
                raise SourceInterrupted(
                    f"{place}, row {number + 1}: {_reason(error)}; run again to continue from here"
                ) from error
            if row is None:
                return
            number += 1
            yield Record(row, f"{place}, row {number}", None)

    def _open(self, place: str) -> Iterator[Any]:
        import datasets  # type: ignore[import-untyped, unused-ignore]
        import huggingface_hub

        files = {self.split: list(self.data_files)} if self.data_files else None
        settings = asdict(self) | {"data_files": files}
        try:
            if self.streaming and not Path(self.path).is_dir():
                # check the connection first: without a network, `datasets` retries for half a minute
                huggingface_hub.HfApi().dataset_info(self.path, revision=self.revision, timeout=_TIMEOUT)
            return iter(datasets.load_dataset(**settings))
        except Exception as error:
            raise SourceInterrupted(f"{place}: {_reason(error)}") from error


@dataclass(frozen=True, kw_only=True)
class HubDataset(RecordCorpus):
    """A data set of the Hugging Face Hub, or a folder with the same layout.

    Set a `revision`: the cache of packed text does not detect changes of the data set on the Hub. Scripts of data sets
    are never run.
    """

    path: str
    """The data set's name on the Hub, such as `allenai/c4`, or a folder."""
    name: str | None = None
    """The configuration of the data set, such as `en`."""
    data_files: dict[str, str | list[str]] | None = None
    """Split of the data set -> files or glob patterns in it, instead of a configuration; for each used split."""
    revision: str | None = None
    """A commit or tag of the data set."""
    train: str = "train"
    """The data set's split to train on."""
    validation: str | None = None
    """The held-out split; without it, documents of `train` are held out by a hash of their text."""
    streaming: bool = True
    """Whether to read rows from the network and store only the packed text; if not, download the data set first."""
    cache_dir: str | None = None
    """Folder in which `datasets` stores its files; null takes its default."""

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.path == "pandas":  # older releases of datasets would load them
            raise ValueError("path is 'pandas', whose files are pickles; reading a pickle may run any code")
        used = {self.train} | ({self.validation} if self.validation else set())
        if self.data_files is not None and set(self.data_files) != used:
            given = ", ".join(self.data_files) or "none"
            raise ValueError(f"data_files is for the splits {given}; it must be for {', '.join(sorted(used))}")

    def has_validation(self) -> bool:
        """Return whether a held-out split is given."""
        return self.validation is not None

    def source(self, split: SplitName) -> HubSource:
        """Return the rows of a split."""
        name = self.train if split == "train" else self.validation
        assert name is not None
        files = self.data_files and self.data_files[name]
        return HubSource(
            path=self.path,
            name=self.name,
            data_files=(files,) if isinstance(files, str) else tuple(files) if files else None,
            revision=self.revision,
            split=name,
            streaming=self.streaming,
            cache_dir=self.cache_dir,
        )


def _reason(error: BaseException) -> str:
    """Return the cause of an error in one line; a network error is named first."""
    if isinstance(error, StopIteration):
        return "there are no rows"
    if type(error).__name__ == "DatasetGenerationError" and error.__cause__ is not None:
        error = error.__cause__  # what happened; the error itself says only that something did
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    message = first_line(error)
    names = " ".join(f"{type(error).__name__} {error}" for error in chain).lower()
    lost = any(word in names for word in ("connect", "timeout", "timed out", "offline", "resolution"))
    return f"the Hugging Face Hub cannot be reached ({message})" if lost else message
