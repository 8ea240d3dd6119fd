"""Tokenizers: bytes, or any `tokenizer.json` of Hugging Face tokenizers, on disk or on the Hub."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from worldlm.data.chat_template import ChatTemplate, read_chat_template
from worldlm.data.control_tokens import END_OF_TEXT, find_end_of_text, protect_control_tokens
from worldlm.data.digests import digest
from worldlm.files.hub import NAME, NoSuchFile, fetch
from worldlm.files.regular import check_regular
from worldlm.topology.errors import native_errors, suggest

TokenIds: TypeAlias = Sequence[int] | NDArray[np.integer]
"""The tokens of a document, shape [num_tokens]."""

FILE = "tokenizer.json"
MAX_BYTES = 100_000_000
"""A file of 23 MB with a million short tokens and their merges took 6 s of CPU and 600 MB of memory to load."""


class Tokenizer(Protocol):
    """The interface of a tokenizer."""

    vocab_size: int
    """One more than the largest token."""
    end_of_text: int
    """The token that follows every document."""

    def encode_batch(self, texts: list[str]) -> Sequence[TokenIds]:
        """Encode documents, without adding any special token."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode tokens to text; end-of-text tokens are dropped."""

    def fingerprint(self) -> str:
        """Return a short text that changes whenever the encoding may change."""

    def to_json(self) -> str:
        """Return the content of a `tokenizer.json`; a `FileTokenizer` of it encodes identically."""


class ByteTokenizer:
    """A tokenizer with a token for each byte of UTF-8, and one for the end of a text."""

    vocab_size = 257
    end_of_text = 256

    def encode_batch(self, texts: list[str]) -> list[NDArray[np.integer]]:
        """Encode documents to their bytes."""
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode bytes to text; an incomplete character becomes a replacement character."""
        return bytes(t for t in tokens if t < self.end_of_text).decode(errors="replace")

    def fingerprint(self) -> str:
        """Return the name of this encoding."""
        return "bytes"

    def to_json(self) -> str:
        """Return a byte-level `tokenizer.json`, which represents every byte by a character."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        backend = Tokenizer(models.BPE({letter: byte for byte, letter in enumerate(_letters())}, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([AddedToken(END_OF_TEXT[0], special=True, normalized=False)])
        text: str = backend.to_str()
        return text


def _letters() -> list[str]:
    """Return the characters of byte-level tokenizers for the 256 bytes; a printable byte is its own character."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


class FileTokenizer:
    """A tokenizer read from a `tokenizer.json`.

    A text is always encoded in the same way: the BPE dropout, truncation, padding and post-processor of the file have
    no effect. Text that spells a control token, such as the end of text, is encoded as plain text; see
    `worldlm.data.control_tokens`. The tokenizer can be pickled.

    Args:
        path: The file.

    Raises:
        ValueError: If the file is missing, larger than `MAX_BYTES`, not a tokenizer, or has no end-of-text token or one
            that also stands for unknown characters.
    """

    def __init__(self, path: str | Path) -> None:
        # Otherwise every data worker that is forked after the packing would print a warning.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        from tokenizers import Tokenizer as Backend

        self._name = repr(str(path))
        self._folder = Path(os.path.expanduser(path)).parent
        with native_errors(f"tokenizer {self._name} cannot be read"):
            content = _read(Path(os.path.expanduser(path)))
            self._backend = Backend.from_str(content)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        _disable_dropout(self._backend)
        end = find_end_of_text(self._backend)
        if not end:
            raise ValueError(f"tokenizer {self._name} has no end-of-text token; known are {', '.join(END_OF_TEXT)}")
        with native_errors(f"tokenizer {self._name} cannot be used"):
            protect_control_tokens(self._backend, end)
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values()) + 1
        self.end_of_text: int = vocabulary[end]
        self._fingerprint = digest(self.to_json())

    @cached_property
    def chat(self) -> ChatTemplate | None:
        """The chat template in the folder of the file; None if there is none.

        Raises:
            ValueError: If a file cannot be read.
        """
        return read_chat_template(self._folder, self.to_json())

    def encode_batch(self, texts: list[str]) -> list[NDArray[np.integer]]:
        """Encode documents, on all cores, to uint16 or, above 65,536 tokens, uint32.

        Raises:
            ValueError: If the tokenizer fails, such as a regular expression that takes too long.
        """
        dtype = np.uint16 if self.vocab_size <= 2**16 else np.uint32
        with native_errors(f"tokenizer {self._name} cannot encode a text"):
            encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        # numpy reads a list at half this speed
        return [np.frombuffer(array("I", encoding.ids), np.uintc).astype(dtype) for encoding in encodings]

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode tokens to text, without special tokens.

        Raises:
            ValueError: If the tokenizer fails.
        """
        with native_errors(f"tokenizer {self._name} cannot decode tokens"):
            return self._backend.decode(list(tokens), skip_special_tokens=True)

    def fingerprint(self) -> str:
        """Return a digest of the tokenizer as it is used, which that of `to_json`, read from a file, has too."""
        return self._fingerprint

    def to_json(self) -> str:
        """Return the tokenizer as it is used: without dropout, truncation or padding; text spells no control token."""
        text: str = self._backend.to_str()
        return text

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a setting that the backend does not pickle."""
        self.__dict__.update(state)
        self._backend.encode_special_tokens = True


def _disable_dropout(backend: Any) -> None:
    """Switch off the dropout of a BPE model, which encodes a text differently each time."""
    if getattr(backend.model, "dropout", None):
        backend.model.dropout = None


def _read(path: Path) -> str:
    """Read a file unless it is so large that the backend would take minutes and most of the memory to parse it."""
    if (size := check_regular(path).stat().st_size) > MAX_BYTES:
        raise ValueError(f"it has {size / 1e6:,.0f} MB; {MAX_BYTES / 1e6:.0f} MB are allowed")
    return path.read_text(encoding="utf-8")


def load_tokenizer(name: str | Path, cache_dir: str | Path | None = None) -> Tokenizer:
    """Load a tokenizer.

    Args:
        name: `bytes`; the path of a `tokenizer.json`, or of a folder with one; or a name on the Hugging Face Hub,
            `owner/name` or `owner/name@revision`, of which only `tokenizer.json` is fetched. A name that ends in
            `.json` or begins with `.`, `/` or `~` is always a path. An existing path takes precedence over the Hub.
        cache_dir: Folder for files from the Hub; by default that of `huggingface_hub`.

    Raises:
        ValueError: If the tokenizer does not exist, cannot be fetched, or cannot be used.
    """
    if name == "bytes":
        return ByteTokenizer()
    path = Path(os.path.expanduser(name))
    inside = check_regular(path / FILE)
    if name and os.path.isfile(inside):
        return FileTokenizer(inside)
    if os.path.isfile(check_regular(path)):
        return FileTokenizer(path)
    text = str(name)
    is_path = isinstance(name, Path) or text.endswith(".json") or text.startswith((".", "/", "~"))
    if not is_path and NAME.fullmatch(text):
        return FileTokenizer(_fetch(text, cache_dir))
    raise ValueError(f"tokenizer {text!r}: {_missing(path) if is_path or (text and path.is_dir()) else _unknown(text)}")


def _missing(path: Path) -> str:
    """Return why a path has no tokenizer."""
    if path.is_dir():
        return f"the folder has no {FILE}; {_advice(str(path))}"
    parent = path.parent
    if not parent.is_dir():
        return f"there is no folder {str(parent)!r}"
    return f"there is no such file or folder{suggest(path.name, _names(parent))}"


def _unknown(name: str) -> str:
    """Return the kinds of names that are allowed."""
    kinds = f"bytes, a {FILE} or its folder, or a name on the Hugging Face Hub (owner/name or owner/name@revision)"
    return f"it must be {kinds}{suggest(name, ['bytes', *_names(Path())])}"


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*"))


def _advice(source: str) -> str:
    """Return how to create a `tokenizer.json` from other files."""
    return (
        f"to create one from a SentencePiece model or a vocabulary, use transformers: "
        f"AutoTokenizer.from_pretrained({source!r}).save_pretrained('FOLDER')"
    )


def _fetch(name: str, cache_dir: str | Path | None) -> Path:
    """Fetch a `tokenizer.json` from the Hub."""
    try:
        return fetch(name, FILE, cache_dir)
    except NoSuchFile as error:
        advice = f"(google/mt5-*, for example, have none); {_advice(name.partition('@')[0])}"
        raise ValueError(f"tokenizer {name!r}: {error} {advice}") from error
    except ValueError as error:
        raise ValueError(f"tokenizer {name!r}: {error}") from error
