"""Conversations in files, such as instructions and their answers, as a corpus."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

from worldlm.data.corpora import LeftOut, Record, SplitName, has_text
from worldlm.data.encoders import ConversationEncoder, Encoder
from worldlm.data.files import TextFiles
from worldlm.data.records import NoField, value_of
from worldlm.data.tokenizers import Tokenizer
from worldlm.topology.errors import join_names

_ROLES = ("system", "user", "assistant", "tool")
_Messages: TypeAlias = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Conversations(TextFiles):
    """Conversations in files on disk, of which a model learns to predict the assistant's answers.

    A record has a list of messages, `{role, content}`, in the field `field`. Or it has a prompt and its completion,
    which are a user's and the assistant's message. The roles are system, user, assistant and tool; other fields of a
    message are not used. The formats of files are those of `TextFiles`.

    The tokenizer's chat template turns a conversation into tokens: the `chat_template.jinja`, or the
    `tokenizer_config.json`, in the folder of its `tokenizer.json`. Only the answers are predicted, each with the
    control token that ends it. They are what the template marks with `{% generation %}`, or what it adds for an answer
    to the conversation before it. Without a chat template, a record must be one prompt and one answer; its tokens are
    those of both, and the end of text.

    A document is a conversation. It is trained on whole: one that is longer than the model's `max_seq_len` is left out.
    """

    field: str = "messages"
    """The field with the list of messages; `a.b` is field b within field a."""
    prompt: str = "prompt"
    """The field with the prompt of records without messages, such as `instruction`."""
    completion: str = "completion"
    """The field with the answer to the prompt, such as `output`."""

    def documents(self, split: SplitName) -> Iterator[str]:
        """Read the conversations of a split, each as the contents of its messages on lines of their own."""
        for document in super().documents(split):
            yield "\n".join(message["content"] for message in json.loads(document))

    def encoder(self, tokenizer: Tokenizer) -> Encoder:
        """Return how a conversation becomes tokens.

        Raises:
            ValueError: If the tokenizer's chat template cannot be read.
        """
        return ConversationEncoder(tokenizer, self.skip_invalid)

    def fields(self) -> tuple[str, ...]:
        """Return the fields of a record that are used; that of the messages comes first."""
        first, *others = super().fields()
        return (first, *sorted({*others, self.prompt, self.completion} - {first}))

    def _document(self, record: Record) -> str | LeftOut:
        """Return the messages of a record as JSON, or why it is left out."""
        try:
            messages = self._messages(record)
            if not any(message["role"] == "assistant" and has_text(message["content"]) for message in messages):
                raise ValueError(f"{record.place}: the conversation has no answer of the assistant")
        except ValueError as error:
            if self.skip_invalid:
                return LeftOut.NO_CONVERSATION
            raise ValueError(f"{error}; to leave such records out, set skip_invalid: true") from error
        return json.dumps(messages, ensure_ascii=False)

    def _messages(self, record: Record) -> _Messages:
        """Return the messages of a record.

        Raises:
            ValueError: If it has none; the message begins with the position of the record.
        """
        with suppress(NoField):
            messages = value_of(record, self.field)
            if not isinstance(messages, list) or not messages:
                raise ValueError(f"{record.place}: field {self.field!r} is {_kind(messages)}, not a list of messages")
            return [_message(record.place, number, message) for number, message in enumerate(messages, 1)]
        try:
            names = {"user": self.prompt, "assistant": self.completion}
            values = {role: (name, value_of(record, name)) for role, name in names.items()}
        except NoField as error:
            wanted = f"{self.field!r}, or both {self.prompt!r} and {self.completion!r}"
            raise ValueError(f"{error}; a conversation needs {wanted}") from None
        return [
            {"role": role, "content": _content(f"{record.place}: field {name!r}", value)}
            for role, (name, value) in values.items()
        ]


def _message(place: str, number: int, message: object) -> dict[str, str]:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise ValueError(f"{place}: message {number} has no role and content")
    if message["role"] not in _ROLES:
        raise ValueError(f"{place}: message {number} has the role {message['role']!r}, not {join_names(_ROLES)}")
    if message.get("tool_calls"):
        raise ValueError(f"{place}: message {number} calls a tool, which is not supported")
    return {
        "role": message["role"],
        "content": _content(f"{place}: the content of message {number}", message["content"]),
    }


def _content(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} is {_kind(value)}, not text")
    return value


def _kind(value: object) -> str:
    return "null" if value is None else "empty" if value == [] else type(value).__name__
