"""Preparing: read, tokenise and pack corpora, each once, with as few passes over their sources as possible.

The cache is content-addressed: a folder's name contains a digest of corpus, tokenizer and format. A folder gets this
name only when it is complete. A preparation that was killed continues where it was last saved. If several processes
need the same corpus, one packs it and the others wait.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from worldlm.data.corpora import Corpus, SplitName, naming
from worldlm.data.digests import digest
from worldlm.data.display import Display
from worldlm.data.encoding import encode
from worldlm.data.filling import Filling
from worldlm.data.gathering import gather
from worldlm.data.locks import exclusive_lock
from worldlm.data.packed import FORMAT, PackedCorpus, open_folder
from worldlm.data.tokenizers import Tokenizer

_SECONDS_BETWEEN_SAVES = 20.0


@dataclass(frozen=True)
class Request:
    """A corpus to prepare."""

    name: str
    """The name of the corpus, for its folder and its progress."""
    corpus: Corpus
    """The corpus."""
    title: str
    """The beginning of error messages, such as `node 'wk', corpus 'wikipedia'`."""


def folder_of(request: Request, tokenizer: Tokenizer, cache_dir: str | Path) -> Path:
    """Return the folder of a packed corpus, whether or not it exists.

    Raises:
        ValueError: If the corpus cannot be found.
    """
    with naming(request.title):
        key = digest(FORMAT, request.corpus.fingerprint(), request.corpus.encoder(tokenizer).fingerprint())
    name = re.sub(r"[^\w.-]", "_", request.name)
    return Path(os.path.expanduser(cache_dir)) / f"{name}-{key}"


def prepare(
    requests: Sequence[Request], tokenizer: Tokenizer, cache_dir: str | Path
) -> dict[str, dict[SplitName, PackedCorpus]]:
    """Pack corpora, or open and verify those that are packed already.

    Args:
        requests: The corpora.
        tokenizer: The tokenizer.
        cache_dir: Folder for the packed corpora; created if it is missing.

    Returns:
        Corpus name -> split -> its tokens.

    Raises:
        ValueError: If a corpus cannot be read or has no text, or if the cache cannot be written.
    """
    try:
        return _prepare(requests, tokenizer, Path(cache_dir))
    except OSError as error:  # such as a full disk; the text packed so far is kept if possible
        reason = f"{error.strerror}: {str(error.filename)!r}" if error.filename else error.strerror or str(error)
        raise ValueError(f"cache_dir {cache_dir} cannot be used: {reason}") from error


def _prepare(
    requests: Sequence[Request], tokenizer: Tokenizer, cache_dir: Path
) -> dict[str, dict[SplitName, PackedCorpus]]:
    folders = {request.name: folder_of(request, tokenizer, cache_dir) for request in requests}
    packed: dict[Path, dict[SplitName, PackedCorpus]] = {}
    missing: dict[Path, Request] = {}
    with ExitStack() as locks:
        for request in sorted(
            requests, key=lambda request: folders[request.name]
        ):  # in a fixed order, against deadlocks
            folder = folders[request.name]
            if folder in packed or folder in missing:
                continue
            with suppress(ValueError):
                packed[folder] = open_folder(folder, vocab_size=tokenizer.vocab_size)
                continue
            locks.enter_context(exclusive_lock(folder, f"packing {request.name}"))
            try:
                packed[folder] = open_folder(folder, vocab_size=tokenizer.vocab_size)
            except ValueError:
                missing[folder] = request
        if missing:
            missing = {folder: missing[folder] for folder in folders.values() if folder in missing}
            _fill(missing, tokenizer)
        packed |= {folder: open_folder(folder, vocab_size=tokenizer.vocab_size) for folder in missing}
    return {name: packed[folder] for name, folder in folders.items()}


def open_prepared(request: Request, tokenizer: Tokenizer, cache_dir: str | Path) -> dict[SplitName, PackedCorpus]:
    """Open a corpus that `prepare` has packed and verified.

    Raises:
        ValueError: If it is not packed.
    """
    return open_folder(folder_of(request, tokenizer, cache_dir), verify=False)


def _fill(missing: Mapping[Path, Request], tokenizer: Tokenizer) -> None:
    fillings: list[Filling] = []
    with ExitStack() as stack:
        for folder, request in missing.items():
            with naming(request.title):
                encoder = request.corpus.encoder(tokenizer)
                fillings.append(Filling(request.name, request.title, request.corpus, folder, encoder))
            stack.callback(fillings[-1].suspend)
        display = stack.enter_context(Display())
        while group := _next_group(fillings):
            _read_once(group, display)


def _next_group(fillings: Sequence[Filling]) -> list[Filling]:
    """Return all corpora that read the next source: the one that is earliest in the order of every corpus."""
    incomplete = [filling for filling in fillings if filling.reading is not None]
    if not incomplete:
        return []
    sources = [filling.reading.source for filling in incomplete if filling.reading is not None]
    earliest = min(sources, key=lambda source: max(filling.rank(source) for filling in incomplete))
    return [filling for filling, source in zip(incomplete, sources, strict=True) if source == earliest]


def _read_once(group: Sequence[Filling], display: Display) -> None:
    """Read a source to its end, or until all corpora that use it are full."""
    saved = time.monotonic()
    for filling in group:
        display.start(filling.name, filling.packing.counts)
    for part, tokens in encode(gather(group), lambda part, texts: group[part.member].encode(part, texts)):
        filling = group[part.member]
        filling.append(part, tokens)
        display.advance(filling.name, filling.packing.counts, filling.done(part.done))
        if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
            for member in group:
                member.packing.save()
            saved = time.monotonic()
    for filling in group:
        filling.end_reading()
        if filling.reading is None:
            display.finish(filling.name, filling.packing.counts)
