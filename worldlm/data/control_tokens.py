"""Control tokens of a `tokenizer.json`, such as the end of text: tokens that no text may be encoded to."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from worldlm.topology.errors import native_errors

END_OF_TEXT = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<eos>",
    "</s>",
    "<|im_end|>",
    "[EOS]",
    "[SEP]",
)
"""The names of the token that ends a text, the preferred ones first."""

_CONTROL = re.compile(
    r"<\|.+\|>|<\uff5c.+\uff5c>|</?s>|<(pad|unk|bos|eos|cls|sep|mask)>|\[(PAD|UNK|BOS|EOS|CLS|SEP|MASK)\]",
    re.IGNORECASE,
)
"""Names of control tokens. Some files do not mark these as special. Their other unmarked tokens are text, such as runs
of spaces, HTML tags and placeholders for names."""

_RARE = "\u16a0\U0001327f"
"""A rune and a hieroglyph, which few vocabularies have."""


def find_end_of_text(backend: Any) -> str:
    """Return the token that ends a text, preferably one that is marked as special; "" if there is none."""
    vocabulary = backend.get_vocab(with_added_tokens=True)
    return next((token for kind in (_special(backend), vocabulary) for token in END_OF_TEXT if token in kind), "")


def protect_control_tokens(backend: Any, end_of_text: str) -> None:
    """Prevent text that spells a control token from being encoded as this token.

    Control tokens are the end of text, the tokens that are marked as special, and the added tokens with the name of a
    control token. All of them become special, which the backend does not look for in texts. Unigram models also have
    the spellings in their own vocabulary and prefer them to single characters: the pre-tokenizer splits such a spelling
    after its first character. Nothing else is split.

    Args:
        backend: The tokenizer of the `tokenizers` library, which is changed. It must encode special tokens as text.
        end_of_text: The token that ends a text.

    Raises:
        ValueError: If the end of text is also the token of unknown characters.
    """
    from tokenizers import AddedToken, Regex, pre_tokenizers

    special = _special(backend)
    added = [token.content for token in backend.get_added_tokens_decoder().values()]
    unmarked = [text for text in added if text not in special and _CONTROL.fullmatch(text)]
    unmarked += [end_of_text] if end_of_text not in (*special, *unmarked) else []
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in unmarked])
    spelt = [text for text in (*special, *unmarked) if len(text) > 1 and _is_reachable(backend, text)]
    if spelt:
        pattern = "|".join(f"{re.escape(text[0])}(?={re.escape(text[1:])})" for text in spelt)
        first = backend.pre_tokenizer
        cut = pre_tokenizers.Split(Regex(pattern), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([first, cut] if first else [cut])
    if _encodes_to(backend, _RARE, backend.token_to_id(end_of_text)):
        raise ValueError(
            f"unknown characters are encoded as the end of text, {end_of_text!r}: give it another unk_token"
        )


def _special(backend: Any) -> list[str]:
    return [token.content for token in backend.get_added_tokens_decoder().values() if token.special]


def _is_reachable(backend: Any, text: str) -> bool:
    """Return whether a spelling is encoded as its token at the beginning of a text, within a word or between words."""
    contexts = (text, text * 2, f"a{text}a", f"a {text} a")
    return any(_encodes_to(backend, context, backend.token_to_id(text)) for context in contexts)


def _encodes_to(backend: Any, text: str, token: int) -> bool:
    """Return whether the encoding of a text has a token; a text that cannot be encoded has none."""
    with suppress(ValueError), native_errors("not encoded"):
        return token in backend.encode(text, add_special_tokens=False).ids
    return False
