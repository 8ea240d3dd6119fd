"""Tokenizers: bytes, or any `tokenizer.json` of Hugging Face's tokenizers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from worldlm.data.corpora import digest

TokenIds: TypeAlias = Sequence[int] | NDArray[np.integer]
"""The tokens of one document, shape [num_tokens]."""

_END_OF_TEXT = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<eos>",
    "</s>",
    "<|im_end|>",
    "[EOS]",
    "[SEP]",
)


class Tokenizer(Protocol):
    """What the packing needs of a tokenizer."""

    vocab_size: int
    """One more than the largest token."""
    end_of_text: int
    """The token that follows every document."""

    def encode_batch(self, texts: list[str]) -> Sequence[TokenIds]:
        """Encode documents, without adding any special token."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Turn tokens to text; the end of a text becomes nothing."""

    def fingerprint(self) -> str:
        """Return a short text that changes whenever the encoding may."""


class ByteTokenizer:
    """One token for each byte of UTF-8, and one for the end of a text."""

    vocab_size = 257
    end_of_text = 256

    def encode_batch(self, texts: list[str]) -> list[NDArray[np.integer]]:
        """Encode documents to their bytes."""
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        """Turn bytes to text; half a character becomes a replacement character."""
        return bytes(t for t in tokens if t < self.end_of_text).decode(errors="replace")

    def fingerprint(self) -> str:
        """Return the name of this encoding."""
        return "bytes"


class FileTokenizer:
    """A tokenizer read from a `tokenizer.json`.

    Special tokens spelt out in a document are encoded as the plain text they are there.

    Args:
        path: The file.

    Raises:
        ValueError: If the file is missing, is no tokenizer, or has no token for the end of a text.
    """

    def __init__(self, path: str | Path) -> None:
        # Without it, every data worker forked after the packing would print a warning.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        from tokenizers import Tokenizer as Backend

        try:
            content = Path(path).expanduser().read_text(encoding="utf-8")
            self._backend = Backend.from_str(content)
        except Exception as error:  # the backend raises bare Exceptions
            raise ValueError(f"tokenizer {str(path)!r} cannot be read: {error}") from error
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        ends = [vocabulary[token] for token in _END_OF_TEXT if token in vocabulary]
        if not ends:
            known = ", ".join(_END_OF_TEXT)
            raise ValueError(f"tokenizer {str(path)!r} has no end-of-text token; known are {known}")
        self.vocab_size: int = max(vocabulary.values()) + 1
        self.end_of_text: int = ends[0]
        self._fingerprint = digest(content)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Encode documents, on all cores."""
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, tokens: Sequence[int]) -> str:
        """Turn tokens to text, without special tokens."""
        return self._backend.decode(list(tokens), skip_special_tokens=True)

    def fingerprint(self) -> str:
        """Digest the file."""
        return self._fingerprint


def load_tokenizer(name: str | Path) -> Tokenizer:
    """Load a tokenizer.

    Args:
        name: `bytes`, or the path of a `tokenizer.json`.

    Raises:
        ValueError: If it is neither.
    """
    return ByteTokenizer() if name == "bytes" else FileTokenizer(name)
