"""A tiny tokenizer with a chat template, and conversations."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from worldlm.data import ByteTokenizer

PLAIN = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML without marks."""
MARKED = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}<|im_end|>\n{% endfor %}"
)
"""ChatML whose marks do not include the control token that ends an answer."""
START, END = 257, 258
"""The tokens `<|im_start|>` and `<|im_end|>`; a byte is its own token."""
VOCAB_SIZE = 259


def write_tokenizer(folder: Path, template: str | None = PLAIN, **settings: Any) -> Path:
    """Write a tokenizer of bytes and three control tokens, with a chat template unless it is None."""
    folder.mkdir(parents=True, exist_ok=True)
    backend = Tokenizer.from_str(ByteTokenizer().to_json())
    marks = ("<|im_start|>", "<|im_end|>")
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in marks])
    (folder / "tokenizer.json").write_text(backend.to_str())
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def turns(*contents: str, system: str = "") -> list[dict[str, str]]:
    """Return messages of a user and the assistant in turn, perhaps after one of the system."""
    roles = ("user", "assistant")
    first = [{"role": "system", "content": system}] if system else []
    return [*first, *({"role": roles[i % 2], "content": content} for i, content in enumerate(contents))]


def write_jsonl(path: Path, records: Iterable[Any]) -> Path:
    """Write records, one on each line."""
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def chats(number: int, answer: str = "{n} and {n}", **fields: Any) -> list[dict[str, Any]]:
    """Return short conversations that all differ."""
    return [{"messages": turns(f"say {n}", answer.format(n=n)), **fields} for n in range(number)]
