"""A byte-level BPE tokenizer, trained on the text of a recipe."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from worldlm.data.corpora import Corpus, naming
from worldlm.data.digests import digest
from worldlm.data.locks import exclusive_lock
from worldlm.data.tokenizers import FileTokenizer
from worldlm.files.atomic_write import write_text
from worldlm.files.regular import check_regular

_FORMAT = 1
_END_OF_TEXT = "<|endoftext|>"
_SMALLEST = 257  # all bytes and the end of text
_WORDS = (
    r" ?[\p{L}\p{M}]{1,64}(?:['’](?=\p{L}))?"  # a word with its space, marks and elision: l'|acqua
    r"|\p{N}{1,3}"  # a token has at most three digits
    r"| ?[^\s\p{L}\p{M}\p{N}]+"
    r"|\s+(?!\S)|\s+"
)
_PIECE_CHARACTERS = 2**16
_Titled: TypeAlias = dict[str, tuple[str, Corpus]]
"""Corpus name -> (title for error messages, corpus), sorted by name."""
_log = logging.getLogger("worldlm.data")


# not a dataclass: for a setting of type `str | object`, older releases of jsonargparse drop one without init_args
class TrainedBPE:
    """A byte-level BPE, trained on the first text of each corpus and stored in the cache.

    It encodes any text without loss. The same settings and corpora give the same tokenizer on every machine with the
    same release of `tokenizers`.

    **What it reveals.** The tokens are statistics of the pooled training text of all corpora, and everyone who has the
    tokenizer can read them. A rare word of a single participant, such as a name in a hospital's notes, may become a
    token of its own. The privacy settings of a topology do not cover this. Use `bytes` or a public tokenizer if this is
    not acceptable. A larger `min_frequency` makes it less likely, but guarantees nothing.

    Args:
        vocab_size: Largest number of tokens: all bytes, the end of text, and as many others as fit; at least 257.
        megabytes: Text to take from the beginning of each corpus, in millions of bytes; a shorter corpus is used
            completely.
        min_frequency: Number of times that two tokens must occur side by side to be merged.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(self, vocab_size: int = 8192, megabytes: float = 10.0, min_frequency: int = 2) -> None:
        if vocab_size < _SMALLEST:
            raise ValueError(
                f"vocab_size is {vocab_size}; it must be at least {_SMALLEST}: 256 bytes and the end of text"
            )
        if not 0 < megabytes < math.inf:
            raise ValueError(f"megabytes is {megabytes}; it must be a number above 0")
        if min_frequency < 1:
            raise ValueError(f"min_frequency is {min_frequency}; it must be at least 1")
        self.vocab_size = vocab_size
        self.megabytes = megabytes
        self.min_frequency = min_frequency

    def load(
        self, corpora: Mapping[str, Corpus], cache_dir: str | Path, titles: Mapping[str, str] | None = None
    ) -> FileTokenizer:
        """Train the tokenizer, or open it if it is in the cache.

        If several processes need it, one trains it and the others wait.

        Args:
            corpora: The corpora to train on, by name, in any order.
            cache_dir: Cache folder; the tokenizer is stored in its folder `tokenizers/`, created if it is missing.
            titles: Corpus name -> its title in error messages, such as `node 'wk', corpus 'wikipedia'`.

        Raises:
            ValueError: If a corpus cannot be read, or has no text.
        """
        if not corpora:
            raise ValueError("there is no corpus to train a tokenizer on")
        titled = {name: ((titles or {}).get(name, f"corpus {name!r}"), corpora[name]) for name in sorted(corpora)}
        stem = Path(os.path.expanduser(cache_dir)) / "tokenizers" / f"bpe-{self._key(titled)}"
        tokenizer = _open(stem) or self._train_alone(titled, stem)
        if tokenizer.vocab_size < self.vocab_size:
            _log.warning(
                "the text gave a tokenizer of %d tokens, not %d: raise megabytes, or lower vocab_size or min_frequency",
                tokenizer.vocab_size,
                self.vocab_size,
            )
        return tokenizer

    def _key(self, corpora: _Titled) -> str:
        from tokenizers import __version__

        settings = (self.vocab_size, float(self.megabytes), self.min_frequency)
        fingerprints = []
        for name, (title, corpus) in corpora.items():
            with naming(title):
                fingerprints.append((name, corpus.fingerprint()))
        return digest(_FORMAT, __version__, settings, fingerprints)

    def _train_alone(self, corpora: _Titled, stem: Path) -> FileTokenizer:
        """Train, unless another process did meanwhile, and write the file atomically."""
        with exclusive_lock(stem, "training the tokenizer"):
            if tokenizer := _open(stem):
                return tokenizer
            started = time.perf_counter()
            sizes: dict[str, int] = {}
            backend = self._train(corpora, sizes)
            content = backend.to_str()
            path = stem.with_name(f"{stem.name}-{digest(content.encode())}.json")
            write_text(path, content, to_disk=True)
        megabytes, seconds = sum(sizes.values()) / 1e6, time.perf_counter() - started
        text = f"{megabytes:.1f} MB of {len(sizes)} {'corpus' if len(sizes) == 1 else 'corpora'}"
        size = backend.get_vocab_size()
        print(f"Trained a BPE of {size} tokens on {text} in {seconds:.1f} s: {path}", file=sys.stderr)
        return FileTokenizer(path)

    def _train(self, corpora: _Titled, sizes: dict[str, int]) -> Any:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

        backend = Tokenizer(models.BPE())
        words = pre_tokenizers.Split(Regex(_WORDS), "isolated")
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            min_frequency=self.min_frequency,
            special_tokens=[_END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=sys.stderr.isatty(),
        )
        backend.train_from_iterator(self._texts(corpora, sizes), trainer)
        return backend

    def _texts(self, corpora: _Titled, sizes: dict[str, int]) -> Iterator[str]:
        """Read the same amount of text of every corpus, in pieces, and count its bytes."""
        limit = int(self.megabytes * 1e6) or 1
        for name, (title, corpus) in corpora.items():
            sizes[name] = 0
            with naming(title):
                for document in corpus.documents("train"):
                    data = document.encode(errors="replace")[: limit - sizes[name]]
                    sizes[name] += len(data)
                    text = data.decode(errors="ignore")  # the last character may be incomplete
                    for start in range(0, len(text), _PIECE_CHARACTERS):
                        yield text[start : start + _PIECE_CHARACTERS]
                    if sizes[name] == limit:
                        break
        if empty := [name for name, size in sizes.items() if not size]:
            raise ValueError(f"there is no text to train a tokenizer on in {', '.join(map(repr, empty))}")


def _open(stem: Path) -> FileTokenizer | None:
    """Open a tokenizer if it exists unchanged: its name ends in a digest of its content."""
    for path in stem.parent.glob(f"{stem.name}-*.json"):
        with suppress(OSError, ValueError):
            if path.name == f"{stem.name}-{digest(check_regular(path).read_bytes())}.json":
                return FileTokenizer(path)
    return None
