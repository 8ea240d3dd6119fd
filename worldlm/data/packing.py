"""The writer of the folder of a packed corpus; see `worldlm.data.packed`."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from worldlm.data.corpora import SplitName
from worldlm.data.digests import digest
from worldlm.data.packed import (
    COUNTS,
    DOCUMENT,
    FORMAT,
    SPLITS,
    Counts,
    checksum,
    documents_of,
    files_of,
    read_counts,
    targets_of,
)
from worldlm.files.regular import check_regular


class Packing:
    """Writes the tokens of a corpus to a folder.

    Saved data survives a kill at any moment, and a new object continues from the last `save`.

    Args:
        target: The folder of the packed corpus once it is complete.
        dtype: `uint16` or `uint32`.
        has_targets: Whether only some of the tokens are to be predicted.
    """

    position: tuple[int, int]
    """The index of the current reading, and the number of its records that are processed."""
    counts: dict[SplitName, Counts]
    """The sizes of the text that is packed so far."""

    def __init__(self, target: Path, dtype: str, has_targets: bool = False) -> None:
        self.target = target
        self.folder = target.with_name(f".{target.name}.partial")
        self.dtype = dtype
        self.has_targets = has_targets
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.position, self.counts = self._load()
        except (OSError, TypeError, ValueError, KeyError):  # missing or damaged: start again
            none = 0 if has_targets else None
            self.counts = {split: Counts(num_targets=none, targets_crc32=none) for split in SPLITS}
            self.position = (0, 0)
        self._files: dict[Path, BinaryIO] = {}
        sizes = {check_regular(path): size for path, size in self._sizes().items()}
        for path, size in sizes.items():
            self._files[path] = path.open("ab")
            self._files[path].truncate(size)

    def append(
        self,
        split: SplitName,
        tokens: NDArray[np.integer],
        num_bytes: int,
        lengths: NDArray[np.int64],
        persons: NDArray[np.uint64],
        targets: NDArray[np.bool_] | None = None,
    ) -> None:
        """Add documents to a split.

        Args:
            split: The split.
            tokens: The tokens of the documents with their control tokens, of this packing's dtype, shape [tokens].
            num_bytes: Bytes in UTF-8 of the text to predict.
            lengths: Tokens of each document, shape [documents].
            persons: A digest of the person whose text each document is, or 0; same shape.
            targets: Which tokens are to be predicted, shape [tokens]; None if all are.
        """
        assert (targets is not None) == self.has_targets
        counts, path = self.counts[split], self._path(split)
        documents = np.empty(len(lengths), DOCUMENT)
        documents["end"], documents["person"] = counts.num_tokens + np.cumsum(lengths), persons
        self._files[path].write(tokens.data)
        self._files[documents_of(path)].write(documents.tobytes())
        counts.crc32 = zlib.crc32(tokens.data, counts.crc32)
        counts.documents_crc32 = zlib.crc32(documents.tobytes(), counts.documents_crc32)
        counts.num_tokens += len(tokens)
        counts.num_bytes += num_bytes
        counts.num_documents += len(lengths)
        if targets is not None:
            mask = targets.astype(np.uint8)
            self._files[targets_of(path)].write(mask.data)
            counts.targets_crc32 = zlib.crc32(mask.data, counts.targets_crc32 or 0)
            counts.num_targets = (counts.num_targets or 0) + int(targets.sum())

    def save(self) -> None:
        """Write the packed text and the position to disk, so that they survive a kill."""
        for stream in self._files.values():
            stream.flush()
            os.fsync(stream.fileno())
        content: dict[str, object] = {
            "format": FORMAT,
            "dtype": self.dtype,
            "position": self.position,
            "splits": {split: _as_plain(counts) for split, counts in self.counts.items()},
        }
        content["digest"] = digest(content["splits"])
        new = self.folder / f"{COUNTS}.new"
        with check_regular(new).open("wb") as stream:
            stream.write(json.dumps(content).encode())
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(self.folder / COUNTS)

    def finish(self) -> None:
        """Save, and rename the folder, which marks it as complete."""
        self.save()
        self.close()
        if self.target.exists():  # it is damaged, otherwise the corpus would not be packed again
            shutil.rmtree(self.target)
        self.folder.replace(self.target)

    def close(self) -> None:
        """Close the files; a new object can continue from the last save."""
        for stream in self._files.values():
            stream.close()
        self._files.clear()  # if the folder then cannot be renamed, there is nothing more to flush

    def remove(self) -> None:
        """Delete the text that is packed so far."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _load(self) -> tuple[tuple[int, int], dict[SplitName, Counts]]:
        dtype, counts = read_counts(self.folder / COUNTS)
        content = json.loads((self.folder / COUNTS).read_text("utf-8"))
        reading, records = content["position"]
        if dtype != self.dtype:
            raise ValueError(f"{dtype} is not {self.dtype}")
        for split in SPLITS:
            if (counts[split].num_targets is not None) != self.has_targets:
                raise ValueError("the tokens to predict were chosen in another way")
            for file, size, crc32 in files_of(self._path(split), dtype, counts[split]):
                if checksum(file, size) != crc32:
                    raise ValueError(f"{file} was changed after it was written")
        return (reading, records), counts

    def _path(self, split: SplitName) -> Path:
        return self.folder / f"{split}.bin"

    def _sizes(self) -> dict[Path, int]:
        """Return the bytes of each file that are packed so far."""
        return {
            file: size
            for split, counts in self.counts.items()
            for file, size, _ in files_of(self._path(split), self.dtype, counts)
        }


def _as_plain(counts: Counts) -> dict[str, object]:
    """Return the counts as JSON, without those that do not apply."""
    return {name: value for name, value in asdict(counts).items() if value is not None}
