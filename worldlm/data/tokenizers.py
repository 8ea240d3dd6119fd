"""Tokenizers: bytes, or any `tokenizer.json` of Hugging Face's tokenizers, on disk or on the Hub."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from worldlm.data.corpora import digest
from worldlm.topology.errors import suggest

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
FILE = "tokenizer.json"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_HUB_SECONDS = 5.0


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

    def to_json(self) -> str:
        """Return it as the content of a `tokenizer.json`, which reads as a `FileTokenizer` that encodes alike."""


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

    def to_json(self) -> str:
        """Spell every byte as the character that byte-level tokenizers have for it."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        backend = Tokenizer(models.BPE({letter: byte for byte, letter in enumerate(_letters())}, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([AddedToken(_END_OF_TEXT[0], special=True, normalized=False)])
        text: str = backend.to_str()
        return text


def _letters() -> list[str]:
    """List the characters that byte-level tokenizers have for the 256 bytes: themselves where one sees them."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte if byte in seen else next(others)) for byte in range(256)]


class FileTokenizer:
    """A tokenizer read from a `tokenizer.json`.

    Special tokens spelt out in a document are encoded as the plain text they are there. It can be
    sent to another process.

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
            raise ValueError(f"tokenizer {str(path)!r} cannot be read: {_first_line(error)}") from error
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        added = self._backend.get_added_tokens_decoder()
        special = {token.content: number for number, token in added.items() if token.special}
        ends = [token for kind in (special, vocabulary) for token in _END_OF_TEXT if token in kind]
        if not ends:
            known = ", ".join(_END_OF_TEXT)
            raise ValueError(f"tokenizer {str(path)!r} has no end-of-text token; known are {known}")
        self.vocab_size: int = max(vocabulary.values()) + 1
        self.end_of_text: int = vocabulary[ends[0]]
        self._fingerprint = digest(content, *self._part({**special, ends[0]: vocabulary[ends[0]]}))

    def encode_batch(self, texts: list[str]) -> list[NDArray[np.integer]]:
        """Encode documents, on all cores, to uint16 or, above 65,536 tokens, uint32."""
        dtype = np.uint16 if self.vocab_size <= 2**16 else np.uint32
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        # numpy reads a list at half this speed
        return [np.frombuffer(array("I", encoding.ids), np.uintc).astype(dtype) for encoding in encodings]

    def decode(self, tokens: Sequence[int]) -> str:
        """Turn tokens to text, without special tokens."""
        return self._backend.decode(list(tokens), skip_special_tokens=True)

    def fingerprint(self) -> str:
        """Digest the file."""
        return self._fingerprint

    def to_json(self) -> str:
        """Return the file as it is used here: uncut, unpadded, and text kept from becoming special tokens."""
        text: str = self._backend.to_str()
        return text

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what the backend does not send along."""
        self.__dict__.update(state)
        self._backend.encode_special_tokens = True

    def _part(self, tokens: dict[str, int]) -> list[str]:
        """Keep text from becoming one of some tokens, where the model itself knows their spelling.

        Unigram models do, and prefer it to the plain characters. Such a spelling is cut in two after its first
        character, before the model sees it. Nothing else is cut.

        Returns:
            The spellings to cut.
        """
        from tokenizers import Regex, pre_tokenizers

        encodings = {text: self._backend.encode(text, add_special_tokens=False) for text in tokens if len(text) > 1}
        spelt = [text for text, encoding in encodings.items() if tokens[text] in encoding.ids]
        if spelt:
            pattern = "|".join(f"{re.escape(text[0])}(?={re.escape(text[1:])})" for text in spelt)
            first = self._backend.pre_tokenizer
            cut = pre_tokenizers.Split(Regex(pattern), "isolated")
            self._backend.pre_tokenizer = pre_tokenizers.Sequence([first, cut] if first else [cut])
        return spelt


def load_tokenizer(name: str | Path, cache_dir: str | Path | None = None) -> Tokenizer:
    """Load a tokenizer.

    Args:
        name: `bytes`; the path of a `tokenizer.json`, or of a folder that holds one; or a name of the
            Hugging Face Hub, `owner/name` or `owner/name@revision`, of which only `tokenizer.json` is
            fetched. What ends in `.json` or begins with `.`, `/` or `~` is always a path, and what is on
            disk goes before the Hub.
        cache_dir: Folder of files from the Hub; by default that of `huggingface_hub`.

    Raises:
        ValueError: If there is no such tokenizer, it cannot be fetched, or it cannot be used.
    """
    if name == "bytes":
        return ByteTokenizer()
    path = Path(os.path.expanduser(name))
    inside = path / FILE
    if name and os.path.isfile(inside):
        return FileTokenizer(inside)
    if os.path.isfile(path):
        return FileTokenizer(path)
    text = str(name)
    is_path = isinstance(name, Path) or text.endswith(".json") or text.startswith((".", "/", "~"))
    if not is_path and _HUB_NAME.fullmatch(text):
        return FileTokenizer(_fetch(text, cache_dir))
    raise ValueError(f"tokenizer {text!r}: {_missing(path) if is_path or (text and path.is_dir()) else _neither(text)}")


def _missing(path: Path) -> str:
    """Say what is wrong with a path."""
    if path.is_dir():
        return f"the folder holds no {FILE}; {_advice(str(path))}"
    parent = path.parent
    if not parent.is_dir():
        return f"there is no folder {str(parent)!r}"
    return f"there is no such file or folder{suggest(path.name, _names(parent))}"


def _neither(name: str) -> str:
    """Say what a name might have been."""
    kinds = f"bytes, a {FILE} or its folder, or a name of the Hugging Face Hub (owner/name or owner/name@revision)"
    return f"it must be {kinds}{suggest(name, ['bytes', *_names(Path())])}"


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*"))


def _advice(source: str) -> str:
    """Say how to come by a `tokenizer.json` where there are only other files."""
    return (
        f"where there is only a SentencePiece model or a vocabulary, make one with transformers: "
        f"AutoTokenizer.from_pretrained({source!r}).save_pretrained('FOLDER')"
    )


def _fetch(name: str, cache_dir: str | Path | None) -> Path:
    """Fetch a `tokenizer.json` from the Hub, or take it from the cache where the Hub does not answer.

    `hf_hub_download` alone would ask six times, for half a minute; here the Hub is asked once before.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    where: dict[str, Any] = {"revision": revision or None, "cache_dir": cache_dir}
    seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT", _HUB_SECONDS))
    try:
        get_hf_file_metadata(hf_hub_url(repository, FILE, revision=revision or None), timeout=seconds)
        return Path(hf_hub_download(repository, FILE, **where))
    except Exception as error:  # each release of huggingface_hub has an HTTP library with exceptions of its own
        try:
            return Path(hf_hub_download(repository, FILE, **where, local_files_only=True))
        except (LocalEntryNotFoundError, ValueError):
            raise ValueError(f"tokenizer {name!r}: {_refusal(error, repository, revision)}") from error


def _refusal(error: Exception, repository: str, revision: str) -> str:
    """Say in one line why the Hub did not give a file."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "the Hub gives it only to those it knows: ask for access on the repository's page, and set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no file and no folder of that name, and no such repository on the Hub (or set HF_TOKEN)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the repository has no revision {revision!r}"
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return f"the repository has no {FILE} (google/mt5-* have none, for one); {_advice(repository)}"
    if isinstance(error, errors.HFValidationError):
        return f"this is no name of the Hub: {_first_line(error)}"
    told = f"it cannot be fetched from the Hugging Face Hub ({_first_line(error)}) and is not in its cache"
    return f"{told}; where there is no network, give the path of a {FILE}"


def _first_line(error: BaseException) -> str:
    lines: Iterable[str] = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
