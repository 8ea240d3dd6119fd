"""Files on disk as corpora."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from worldlm.data.corpora import Record, SplitName
from worldlm.data.digests import digest
from worldlm.data.finding import find_files
from worldlm.data.readers import find_reader, read_records
from worldlm.data.records import RecordCorpus
from worldlm.data.streams import unreadable


@dataclass(frozen=True)
class FileSource:
    """The records of files, in the order of the files."""

    files: tuple[Path, ...]
    """The files."""
    fields: tuple[str, ...]
    """The fields that are used; a reader may skip other columns."""

    def records(self) -> Iterator[Record]:
        """Read the files one after the other; see `Source.records`."""
        for file in self.files:
            find_reader(file)  # an unknown kind of file is reported before anything is read
        sizes = [_status(file).st_size for file in self.files]
        total = max(sum(sizes), 1)
        before = 0
        for file, size in zip(self.files, sizes, strict=True):
            for values, place, done in read_records(file, self.fields):
                yield Record(values, place, (before + done * size) / total)
            before += size


@dataclass(frozen=True, kw_only=True)
class TextFiles(RecordCorpus):
    """Text from files on disk.

    The formats are `.txt`, `.json`, `.jsonl` and `.ndjson` (an object on each line, or an array of objects), `.csv` and
    `.tsv`, each also compressed as `.gz`, `.bz2`, `.xz` or `.zst`, and `.parquet`, `.arrow` and `.feather`. Text is
    UTF-8, or UTF-16 with a byte order mark. A `.txt` file up to a megabyte is one document; a larger one is cut into
    documents at line ends. Patterns may contain `*`, `?`, `[...]` and `**`. Files are read in the order of their names,
    each once.
    """

    train: str | list[str]
    """Training files: paths or glob patterns, relative to `root`."""
    validation: str | list[str] | None = None
    """Held-out files; without them, documents of `train` are held out by a hash of their text."""
    root: str = "."
    """Folder in which relative patterns start, itself relative to the data module's `root`."""

    def has_validation(self) -> bool:
        """Return whether held-out files are given."""
        return self.validation is not None

    def under(self, root: Path) -> TextFiles:
        """Return the corpus with its relative patterns below a folder."""
        return replace(self, root=str(root / self.root))

    def source(self, split: SplitName) -> FileSource:
        """Return the files of a split."""
        return FileSource(tuple(self._files(split)), self.fields())

    def fingerprint(self) -> str:
        """Return a digest of the settings and of each file's path, size and modification time."""
        files = self._files("train") + (self._files("validation") if self.has_validation() else [])
        stats = [(str(file.resolve()), _status(file)) for file in files]
        return digest(repr(self), *((path, s.st_size, s.st_mtime_ns) for path, s in stats))

    def _files(self, split: SplitName) -> list[Path]:
        patterns = self.train if split == "train" else self.validation
        assert patterns is not None
        return find_files(patterns, self.root)


def _status(file: Path) -> os.stat_result:
    try:
        return file.stat()
    except OSError as error:
        raise unreadable(file, error) from error
