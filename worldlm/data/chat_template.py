"""Chat templates: conversations as text and as tokens, with the parts that the assistant says."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from worldlm.data.digests import digest
from worldlm.files.regular import check_regular
from worldlm.topology.errors import first_line, native_errors

Message: TypeAlias = Mapping[str, str]
"""A turn of a conversation: its `role` and its `content`."""
Spans: TypeAlias = tuple[tuple[int, int], ...]
"""Parts of a text that do not overlap, in order: the first character of each, and the one after its last."""

TEMPLATE, SETTINGS = "chat_template.jinja", "tokenizer_config.json"
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}\n"
"""Gives the same date on every day, so that a conversation always has the same tokens. Llama's own templates have it
where no date is known. Jinja drops the line end, as transformers sets it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ChatTemplate:
    """A tokenizer's chat template, in the language of transformers, which renders it in a sandbox."""

    template: str
    """The template, in Jinja."""
    special_tokens: Mapping[str, str]
    """Tokens that the template may name, such as `bos_token` and `eos_token`."""
    tokenizer: str
    """The content of a `tokenizer.json`."""

    def render(self, messages: Sequence[Message]) -> tuple[str, Spans]:
        """Return a conversation as text, and the answers in it, each with the control token that ends it.

        The answers are what the template marks with `{% generation %}`. Without such marks, an answer is what the
        template adds to the rendered conversation before it, with the prompt to answer.

        Raises:
            ValueError: If a message spells a control token, the template rejects the conversation, its answers cannot
                be found, or there are none.
        """
        for number, message in enumerate(messages, 1):
            if found := self._control.search(message["content"]):
                raise ValueError(f"message {number} contains the control token {found[0]!r}")
        text, marked = self._render(messages)
        spans = marked if _MARKS.search(self.template) else self._find_answers(text, messages)
        answers = tuple((begin, self._end(text, begin, end)) for begin, end in spans if begin < end)
        if not answers:
            raise ValueError("the chat template renders no answer of the assistant")
        return text, answers

    def num_bytes(self, text: str, spans: Spans) -> int:
        """Return the bytes of parts of a rendered text in UTF-8, without control tokens."""
        return sum(len(self._control.sub("", text[begin:end]).encode()) for begin, end in spans)

    def encode_batch(
        self, texts: Sequence[str], spans: Sequence[Spans]
    ) -> Sequence[tuple[list[int], NDArray[np.bool_]]]:
        """Encode rendered texts, in which control tokens are tokens.

        Returns:
            For each text its tokens, and whether each begins in one of the spans, shape [num_tokens]. The first token
            of a text does not count: there is nothing before it from which it could be predicted.

        Raises:
            ValueError: If the tokenizer fails.
        """
        with native_errors("the tokenizer cannot encode a conversation"):
            encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        pairs = zip(encodings, spans, strict=True)
        return [(encoding.ids, _begin_in(encoding.offsets, parts)) for encoding, parts in pairs]

    def fingerprint(self) -> str:
        """Return a short text that changes whenever a conversation may be rendered differently."""
        return digest(self.template, sorted(self.special_tokens.items()))

    def settings(self) -> dict[str, str]:
        """Return the entries of a `tokenizer_config.json` from which `read_chat_template` reads the same template."""
        return {**self.special_tokens, "chat_template": self.template}

    @property
    def end_token(self) -> int | None:
        """The token `eos_token`, which ends an answer; None if it is not given."""
        token: int | None = self._backend.token_to_id(self.special_tokens.get("eos_token", ""))
        return token

    def _render(self, messages: Sequence[Message], *, prompt: bool = False) -> tuple[str, Spans]:
        from transformers.utils.chat_template_utils import render_jinja_template

        date = _FIXED_DATE if "strftime_now" in self.template else ""
        try:
            render: Any = render_jinja_template
            texts, marked = render(
                [[dict(message) for message in messages]],
                chat_template=date + self.template,
                return_assistant_tokens_mask=_MARKS.search(self.template) is not None,
                add_generation_prompt=prompt,
                **self.special_tokens,
            )
        except Exception as error:  # those of Jinja, and whatever an operation in the template raises
            raise ValueError(f"the chat template rejects the conversation: {first_line(error)}") from error
        return texts[0], tuple(marked[0]) if marked else ()

    def _find_answers(self, text: str, messages: Sequence[Message]) -> Spans:
        """Return where the answers are, from the texts of the conversation up to each of them."""
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, _ = self._render(messages[:number], prompt=True)
            up_to, _ = self._render(messages[: number + 1])
            if not (up_to.startswith(before) and text.startswith(up_to)):
                raise ValueError(
                    f"the chat template renders message {number + 1} or those before it differently if others follow, "
                    "so its answers cannot be found: mark them in the template with {% generation %}"
                )
            end = len(up_to.rstrip())  # a line end after the control token that ends an answer is no part of it
            spans.append((len(before), end if self._ends_with_control(up_to[:end]) else len(up_to)))
        return tuple(spans)

    def _end(self, text: str, begin: int, end: int) -> int:
        """Return the end of an answer, after the control token that directly follows it."""
        following = self._control.match(text, end)
        return following.end() if following and not self._ends_with_control(text[begin:end]) else end

    def _ends_with_control(self, text: str) -> bool:
        return text.endswith(self._control_tokens)

    @cached_property
    def _backend(self) -> Any:
        from tokenizers import Tokenizer

        backend = Tokenizer.from_str(json.dumps({**json.loads(self.tokenizer), "post_processor": None}))
        backend.encode_special_tokens = False
        return backend

    @cached_property
    def _control_tokens(self) -> tuple[str, ...]:
        added = self._backend.get_added_tokens_decoder().values()
        return tuple(token.content for token in added if token.special and len(token.content) > 1)

    @cached_property
    def _control(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self._control_tokens, key=len, reverse=True))) or r"(?!)")

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is made again when it is needed."""
        return {name: vars(self)[name] for name in ("template", "special_tokens", "tokenizer")}


def _begin_in(offsets: Sequence[tuple[int, int]], spans: Spans) -> NDArray[np.bool_]:
    begins, ends = [begin for begin, _ in spans], [end for _, end in spans]
    found = np.zeros(len(offsets), bool)
    for number, (start, _) in enumerate(offsets):
        span = bisect_right(begins, start) - 1
        found[number] = span >= 0 and start < ends[span]
    found[:1] = False
    return found


def read_chat_template(folder: Path, tokenizer: str) -> ChatTemplate | None:
    """Read the chat template in the folder of a tokenizer, as transformers writes it.

    Args:
        folder: It may have a `chat_template.jinja`, and a `tokenizer_config.json` with the special tokens and perhaps
            the template. Of several named templates, that with the name `default` is used.
        tokenizer: The content of its `tokenizer.json`.

    Returns:
        The template; None if there is none.

    Raises:
        ValueError: If a file cannot be read.
    """
    settings, path = _read_settings(folder / SETTINGS), check_regular(folder / TEMPLATE)
    try:
        template = path.read_text("utf-8") if path.is_file() else settings.get("chat_template")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {first_line(error)}") from error
    if isinstance(template, list):
        template = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}.get(
            "default"
        )
    if not isinstance(template, str):
        return None
    tokens = {name: _content(value) for name, value in settings.items() if name.endswith("_token")}
    special = {name: token for name, token in tokens.items() if token is not None}
    return ChatTemplate(template=template, special_tokens=special, tokenizer=tokenizer)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(check_regular(path).read_text("utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is not a JSON object")
    return settings


def _content(token: object) -> str | None:
    """Return the text of a special token, which may be an object with the text and its properties."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
