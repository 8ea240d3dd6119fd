"""Encoders: how the documents of a corpus become tokens, and which of the tokens a model learns to predict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from worldlm.data.chat_template import ChatTemplate, Spans
from worldlm.data.digests import digest
from worldlm.data.tokenizers import TokenIds, Tokenizer

_CONVERSATION_FORMAT = 1
"""The version of the encoding of conversations; it is increased whenever one would be encoded differently."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Tokens:
    """Documents as tokens."""

    tokens: NDArray[np.integer]
    """The tokens of all documents with their control tokens, uint16 or uint32, shape [num_tokens]."""
    num_tokens: NDArray[np.int64]
    """Tokens of each document, control tokens included, shape [num_documents]."""
    num_bytes: NDArray[np.int64]
    """Bytes of each document's predicted text in UTF-8, shape [num_documents]."""
    targets: NDArray[np.bool_] | None = None
    """Which tokens are to be predicted, shape [num_tokens]; None if all are."""


class Encoder(Protocol):
    """The interface of an encoder."""

    dtype: str
    """The type of the tokens: `uint16` or `uint32`."""
    has_targets: bool
    """Whether only some of the tokens are to be predicted."""
    skip_invalid: bool
    """Whether documents that cannot be rendered are left out."""

    def fingerprint(self) -> str:
        """Return a short text that changes whenever the encoding may change."""

    def render(self, document: str) -> tuple[str, Spans]:
        """Return the text of a document, and the parts of it to predict; none if all is.

        Raises:
            ValueError: If it has no such text.
        """

    def encode(self, texts: list[str], spans: Sequence[Spans]) -> Tokens:
        """Encode rendered texts. Lone surrogates, which JSON may contain and UTF-8 cannot encode, are replaced."""


class TextEncoder:
    """Encodes plain text: the end of text follows each document, and every token is predicted.

    Args:
        tokenizer: The tokenizer.
    """

    has_targets = False
    skip_invalid = False

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.dtype = token_dtype(tokenizer)
        self._tokenizer = tokenizer

    def fingerprint(self) -> str:
        """Return the fingerprint of the tokenizer."""
        return self._tokenizer.fingerprint()

    def render(self, document: str) -> tuple[str, Spans]:
        """Return the document; see `Encoder.render`."""
        return document, ()

    def encode(self, texts: list[str], spans: Sequence[Spans] = ()) -> Tokens:
        """Encode texts; see `Encoder.encode`."""
        end = np.array([self._tokenizer.end_of_text], self.dtype)
        texts = [_encodable(text) for text in texts]
        encoded = [np.asarray(ids, self.dtype) for ids in self._tokenizer.encode_batch(texts)]
        return Tokens(
            tokens=np.concatenate([np.empty(0, self.dtype), *(part for ids in encoded for part in (ids, end))]),
            num_tokens=np.array([len(ids) + 1 for ids in encoded], np.int64),
            num_bytes=np.array([len(text.encode()) for text in texts], np.int64),
        )


class ConversationEncoder:
    """Encodes conversations by the tokenizer's chat template; only the assistant's answers are predicted.

    Without a chat template, a conversation of one prompt and one answer has the tokens of the prompt, of the answer and
    of the end of text; others are invalid.

    Args:
        tokenizer: The tokenizer.
        skip_invalid: See `Encoder.skip_invalid`.

    Raises:
        ValueError: If its chat template cannot be read.
    """

    has_targets = True

    def __init__(self, tokenizer: Tokenizer, skip_invalid: bool = False) -> None:
        self.dtype = token_dtype(tokenizer)
        self.skip_invalid = skip_invalid
        self._tokenizer = tokenizer
        self._chat: ChatTemplate | None = getattr(tokenizer, "chat", None)

    def fingerprint(self) -> str:
        """Return a digest of the tokenizer and its chat template."""
        template = None if self._chat is None else self._chat.fingerprint()
        return digest(_CONVERSATION_FORMAT, self._tokenizer.fingerprint(), template)

    def render(self, document: str) -> tuple[str, Spans]:
        """Return a conversation as text, and the answers in it; see `Encoder.render`.

        Args:
            document: The messages as JSON; see `worldlm.data.Conversations`.
        """
        messages = json.loads(document)
        if self._chat is not None:
            return self._chat.render(messages)
        if [message["role"] for message in messages] != ["user", "assistant"]:
            raise ValueError(
                "the tokenizer has no chat template, so a conversation must be one prompt and one answer: choose a "
                "tokenizer whose folder has a chat_template.jinja"
            )
        prompt, answer = (message["content"] for message in messages)
        return prompt + answer, ((len(prompt), len(prompt) + len(answer)),)

    def encode(self, texts: list[str], spans: Sequence[Spans]) -> Tokens:
        """Encode rendered conversations; see `Encoder.encode`."""
        texts = [_encodable(text) for text in texts]
        encoded: Sequence[tuple[TokenIds, NDArray[np.bool_]]]
        if self._chat is None:
            encoded = self._encode_pairs(texts, spans)
            num_bytes = [len(text[begin:].encode()) for text, ((begin, _),) in zip(texts, spans, strict=True)]
        else:
            encoded = self._chat.encode_batch(texts, spans)
            num_bytes = [self._chat.num_bytes(text, parts) for text, parts in zip(texts, spans, strict=True)]
        return Tokens(
            tokens=np.concatenate([np.empty(0, self.dtype), *(np.asarray(ids, self.dtype) for ids, _ in encoded)]),
            num_tokens=np.array([len(ids) for ids, _ in encoded], np.int64),
            num_bytes=np.array(num_bytes, np.int64),
            targets=np.concatenate([np.empty(0, bool), *(is_target for _, is_target in encoded)]),
        )

    def _encode_pairs(self, texts: list[str], spans: Sequence[Spans]) -> list[tuple[TokenIds, NDArray[np.bool_]]]:
        """Encode prompts and answers one by one, so that no token is partly prompt and partly answer."""
        prompts = [text[:begin] for text, ((begin, _),) in zip(texts, spans, strict=True)]
        answers = [text[begin:] for text, ((begin, _),) in zip(texts, spans, strict=True)]
        ids = [list(tokens) for tokens in self._tokenizer.encode_batch([*prompts, *answers])]
        encoded: list[tuple[TokenIds, NDArray[np.bool_]]] = []
        for prompt, answer in zip(ids[: len(texts)], ids[len(texts) :], strict=True):
            tokens = [*prompt, *answer, self._tokenizer.end_of_text]
            is_target = np.arange(len(tokens)) >= max(len(prompt), 1)  # nothing stands before the first token
            encoded.append((tokens, is_target))
        return encoded


def token_dtype(tokenizer: Tokenizer) -> str:
    """Return the smallest type that holds a tokenizer's tokens: `uint16` or `uint32`."""
    return "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"


def _encodable(text: str) -> str:
    """Return a text without lone surrogates: each is replaced by a question mark."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text
