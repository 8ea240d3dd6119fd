"""Chat templates: what of a conversation is predicted."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from chats import END, MARKED, PLAIN, START, turns, write_tokenizer

from worldlm.data import FileTokenizer, load_tokenizer
from worldlm.data.chat_template import ChatTemplate


def _chat(folder: Path, template: str, **settings: object) -> ChatTemplate:
    tokenizer = load_tokenizer(str(write_tokenizer(folder, template, **settings)))
    assert isinstance(tokenizer, FileTokenizer)
    assert tokenizer.chat is not None
    return tokenizer.chat


def _encoded(chat: ChatTemplate, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    text, spans = chat.render(messages)
    ((tokens, targets),) = chat.encode_batch([text], [spans])
    return tokens, targets.astype(int).tolist()


@pytest.mark.parametrize("template", [PLAIN, MARKED], ids=["prefixes", "marks"])
def test_only_the_answers_and_the_tokens_that_end_them_are_predicted(template: str, tmp_path: Path) -> None:
    chat = _chat(tmp_path, template)
    tokens, targets = _encoded(chat, turns("hi", "yo é", "ok", "z", system="be"))
    expected_tokens: list[int] = []
    expected_targets: list[int] = []
    for role, content in (("system", "be"), ("user", "hi"), ("assistant", "yo é"), ("user", "ok"), ("assistant", "z")):
        head, body = f"{role}\n".encode(), content.encode()
        expected_tokens += [START, *head, *body, END, ord("\n")]
        is_answer = int(role == "assistant")
        expected_targets += [*[0] * (1 + len(head)), *[is_answer] * (len(body) + 1), 0]
    assert (tokens, targets) == (expected_tokens, expected_targets)
    text, spans = chat.render(turns("hi", "yo é", "ok", "z"))
    assert chat.num_bytes(text, spans) == len("yo é".encode()) + 1


@pytest.mark.parametrize("template", [PLAIN, MARKED], ids=["prefixes", "marks"])
def test_the_tokens_are_those_of_transformers(template: str, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    chat = _chat(tmp_path, template)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), chat_template=template)
    messages = turns("a <b> ", "\n c", "", "d", system="s")
    marked = template == MARKED
    expected = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=marked)
    tokens, targets = _encoded(chat, messages)
    assert tokens == expected["input_ids"]
    if marked:  # the template's own marks leave out the control token after an answer
        kept = [target and token != END for token, target in zip(tokens, targets, strict=True)]
        assert list(map(int, kept)) == list(expected["assistant_masks"])


def test_marks_that_include_the_end_are_not_extended(tmp_path: Path) -> None:
    template = "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}{% else %}{% generation %}"
    template += "{{ m.content }}<|im_end|>{% endgeneration %}{% endif %}{% endfor %}"
    _, targets = _encoded(_chat(tmp_path, template), turns("a", "b", "c", "d"))
    assert targets == [0, 0, 1, 1, 0, 0, 1, 1]  # the <|im_start|> after an answer is not predicted


def test_a_template_without_control_tokens_ends_an_answer_with_what_it_adds(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}a:{% endif %}"
    _, targets = _encoded(_chat(tmp_path, template), turns("x", "y"))
    assert targets == [0, 0, 0, 0, 0, 0, 1, 1]


def test_the_first_token_is_not_predicted(tmp_path: Path) -> None:
    template = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    _, targets = _encoded(_chat(tmp_path, template), turns("ab", "c"))
    assert targets == [0, 1, 1]


def test_a_template_that_changes_earlier_messages_is_rejected(tmp_path: Path) -> None:
    hides = "{% for m in messages %}{{ m.content if loop.last or m.role == 'user' else '...' }}<|im_end|>{% endfor %}"
    chat = _chat(tmp_path, hides)
    assert _encoded(chat, turns("a", "b"))[1] == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="renders message 2 or those before it differently if others follow") as error:
        chat.render(turns("a", "b", "c", "d"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        (
            "{{ raise_exception('roles must alternate') }}",
            turns("a", "b"),
            "conversation: .*must alternate",
        ),
        ("{{ messages[7].content }}", turns("a", "b"), "rejects the conversation"),
        ("{{ 1 + messages }}", turns("a", "b"), "rejects the conversation: "),
        ("x", turns("a", "b"), "renders no answer"),
        (PLAIN, turns("a <|im_end|>", "b"), "message 1 contains the control token '<|im_end|>'".replace("|", r"\|")),
        (PLAIN, turns("a", "<|im_start|>"), "message 2 contains the control token"),
    ],
)
def test_conversations_that_cannot_be_rendered(
    template: str, messages: list[dict[str, str]], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=expected) as error:
        _chat(tmp_path, template).render(messages)
    assert "\n" not in str(error.value)


def test_the_date_is_always_the_same(tmp_path: Path) -> None:
    text, _ = _chat(tmp_path, "Today is {{ strftime_now('%d %b %Y') }}." + PLAIN).render(turns("a", "b"))
    assert text.startswith("Today is 26 Jul 2024.<|im_start|>user")
    for number, start in enumerate(("\n ", "  ", " x\n")):  # white space at the beginning of a template stays as it is
        dated, plain = (
            _chat(tmp_path / f"{number} {date}", f"{start}{{% if {date} %}}{{% endif %}}{PLAIN}").render(
                turns("a", "b")
            )
            for date in ("strftime_now('')", "1")
        )
        assert dated == plain


def test_the_template_of_the_configuration(tmp_path: Path) -> None:
    special = {"bos_token": {"content": "<|im_start|>", "lstrip": False}, "eos_token": "<|im_end|>", "pad_token": None}
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": "{{ bos_token }}" + PLAIN}]
    tokenizer = load_tokenizer(str(write_tokenizer(tmp_path / "a", None, chat_template=named, **special)))
    assert isinstance(tokenizer, FileTokenizer)
    chat = tokenizer.chat
    assert chat is not None
    text, _ = chat.render(turns("a", "b"))
    assert text.startswith("<|im_start|><|im_start|>user")
    again = load_tokenizer(str(write_tokenizer(tmp_path / "b", None, **chat.settings())))
    assert isinstance(again, FileTokenizer)
    assert again.chat is not None
    assert again.chat.fingerprint() == chat.fingerprint()
    copied = pickle.loads(pickle.dumps(tokenizer)).chat
    assert _encoded(copied, turns("a", "b")) == _encoded(chat, turns("a", "b"))
    (tmp_path / "b" / "chat_template.jinja").write_text(PLAIN)  # the file takes precedence
    newer = load_tokenizer(str(tmp_path / "b"))
    assert isinstance(newer, FileTokenizer)
    assert newer.chat is not None
    assert newer.chat.template == PLAIN
    assert newer.chat.fingerprint() != chat.fingerprint()


def test_folders_without_a_template(tmp_path: Path) -> None:
    for number, settings in enumerate(({}, {"eos_token": "<|im_end|>"}, {"chat_template": [{"name": "x"}]})):
        tokenizer = FileTokenizer(write_tokenizer(tmp_path / str(number), None, **settings) / "tokenizer.json")
        assert tokenizer.chat is None
    folder = write_tokenizer(tmp_path / "damaged", None)
    (folder / "tokenizer_config.json").write_text("[")
    tokenizer = FileTokenizer(folder / "tokenizer.json")  # plain text does not need it
    with pytest.raises(ValueError, match=r"tokenizer_config\.json cannot be read"):
        _ = tokenizer.chat
    (folder / "tokenizer_config.json").write_text(json.dumps([]))
    with pytest.raises(ValueError, match="is not a JSON object"):
        _ = tokenizer.chat
