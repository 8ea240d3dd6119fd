"""Preparing: corpora read, tokenised and packed, each once, in as few readings of their sources as there can be.

The cache is content-addressed: a folder's name holds a digest of corpus, tokenizer and format. Folders appear whole or
not at all; what a killed preparation has packed is taken up again; and of several processes that want the same corpus
at once, one packs it and the others wait.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from worldlm.data.corpora import Corpus, SplitName, digest, naming
from worldlm.data.display import Display
from worldlm.data.encoding import encode, token_dtype
from worldlm.data.filling import Filling, gather
from worldlm.data.locks import one_at_a_time
from worldlm.data.packing import FORMAT, PackedCorpus, open_folder
from worldlm.data.tokenizers import Tokenizer

_SECONDS_BETWEEN_SAVES = 20.0


@dataclass(frozen=True)
class Request:
    """A corpus that is needed."""

    name: str
    """The corpus' name, for folders and progress."""
    corpus: Corpus
    """The corpus."""
    title: str
    """What errors begin with, such as `node 'wk', corpus 'wikipedia'`."""


def folder_of(request: Request, tokenizer: Tokenizer, cache_dir: str | Path) -> Path:
    """Return the folder of a packed corpus, whether or not it is there.

    Raises:
        ValueError: If the corpus cannot be found.
    """
    with naming(request.title):
        key = digest(FORMAT, request.corpus.fingerprint(), tokenizer.fingerprint())
    name = re.sub(r"[^\w.-]", "_", request.name)
    return Path(cache_dir).expanduser() / f"{name}-{key}"


def prepare(
    requests: Sequence[Request], tokenizer: Tokenizer, cache_dir: str | Path
) -> dict[str, dict[SplitName, PackedCorpus]]:
    """Pack corpora, or open and verify those that were packed before.

    Args:
        requests: The corpora.
        tokenizer: The tokenizer.
        cache_dir: Folder to keep the tokens in; made if it is missing.

    Returns:
        Both splits of every corpus, by its name.

    Raises:
        ValueError: If text cannot be read or there is none, or the cache cannot be written.
    """
    try:
        return _prepare(requests, tokenizer, Path(cache_dir))
    except OSError as error:  # what is packed so far stays, if it can
        told = f"{error.strerror}: {str(error.filename)!r}" if error.filename else error.strerror or str(error)
        raise ValueError(f"cache_dir {cache_dir} cannot be used: {told}") from error


def _prepare(
    requests: Sequence[Request], tokenizer: Tokenizer, cache_dir: Path
) -> dict[str, dict[SplitName, PackedCorpus]]:
    folders = {request.name: folder_of(request, tokenizer, cache_dir) for request in requests}
    packed: dict[Path, dict[SplitName, PackedCorpus]] = {}
    missing: dict[Path, Request] = {}
    with ExitStack() as locks:
        for request in sorted(requests, key=lambda one: folders[one.name]):  # an order, lest two wait for each other
            folder = folders[request.name]
            if folder in packed or folder in missing:
                continue
            with suppress(ValueError):
                packed[folder] = open_folder(folder)
                continue
            locks.enter_context(one_at_a_time(folder, f"packing {request.name}"))
            try:
                packed[folder] = open_folder(folder)
            except ValueError:
                missing[folder] = request
        if missing:
            missing = {folder: missing[folder] for folder in folders.values() if folder in missing}
            _fill(missing, tokenizer)
        packed |= {folder: open_folder(folder) for folder in missing}
    return {name: packed[folder] for name, folder in folders.items()}


def open_prepared(request: Request, tokenizer: Tokenizer, cache_dir: str | Path) -> dict[SplitName, PackedCorpus]:
    """Open a corpus that `prepare` has packed and verified.

    Raises:
        ValueError: If it is not there.
    """
    return open_folder(folder_of(request, tokenizer, cache_dir), verify=False)


def _fill(missing: Mapping[Path, Request], tokenizer: Tokenizer) -> None:
    fillings: list[Filling] = []
    with ExitStack() as stack:
        for folder, request in missing.items():
            with naming(request.title):
                fillings.append(Filling(request.name, request.title, request.corpus, folder, token_dtype(tokenizer)))
            stack.callback(fillings[-1].leave)
        display = stack.enter_context(Display())
        while group := _next_group(fillings):
            _read_once(group, tokenizer, display)


def _next_group(fillings: Sequence[Filling]) -> list[Filling]:
    """Choose which source to read next, and all that want it: the one that comes first in everybody's order."""
    waiting = [one for one in fillings if one.reading is not None]
    if not waiting:
        return []
    sources = [one.reading.source for one in waiting if one.reading is not None]
    source = min(sources, key=lambda it: max(one.rank(it) for one in waiting))
    return [one for one, own in zip(waiting, sources, strict=True) if own == source]


def _read_once(group: Sequence[Filling], tokenizer: Tokenizer, display: Display) -> None:
    """Read a source from its beginning to its end, or until all who want it have enough."""
    saved = time.monotonic()
    for filling in group:
        display.start(filling.name, filling.packing.counts)
    for encoded in encode(gather(group), tokenizer):
        filling = group[encoded.tag.member]
        filling.append(encoded)
        display.advance(filling.name, filling.packing.counts, filling.done(encoded.tag.done))
        if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
            for one in group:
                one.packing.save()
            saved = time.monotonic()
    for filling in group:
        filling.end_reading()
        if filling.reading is None:
            display.finish(filling.name, filling.packing.counts)
