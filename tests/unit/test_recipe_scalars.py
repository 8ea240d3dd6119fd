"""Scalars of recipes: text as it is written, and numbers that YAML 1.1 would read differently."""

from typing import Any, Literal

import pytest
import yaml

from worldlm.cli.recipe_scalars import check_scalars, quote_texts, quote_words
from worldlm.data import Corpus
from worldlm.topology.errors import UserError
from worldlm.topology.reader import Reader

_DECLARED: dict[str, Any] = {
    "name": str | None,
    "data": None,
    "data.corpora": dict[str, Corpus],
    "data.local": dict[str, str] | None,
    "data.batch_size": int,
    "model.lr": float,
    "trainer.devices": list[int] | str | int,
    "trainer.bar": bool | None,
    "trainer.mode": Literal["on", "off"],
    "trainer.flag": bool | Literal["warn"],
    "trainer.anything": dict[str, Any] | None,
}
_CORPUS = "{class_path: worldlm.data.TextFiles, init_args: {train: on, max_tokens: 3, where: %s}}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: no", {"name": "no"}),
        ("name: 0123  # a comment", {"name": "0123"}),
        ("name: 1e3", {"name": "1e3"}),
        ("name: 2024", {"name": "2024"}),
        ("name: 2024-01-31", {"name": "2024-01-31"}),
        ("name: 12:30:00", {"name": "12:30:00"}),
        ("name: =", {"name": "="}),
        ("name: ~", {"name": None}),
        ("name:", {"name": None}),
        ("name: a \\ b", {"name": "a \\ b"}),
        ("name: a\r\n  b\r\n", {"name": "a b"}),
        ("name: 'no'", {"name": "no"}),
        ("name: !!str no", {"name": "no"}),
        ("data: {batch_size: 1_0, local: {no: 1}}", {"data": {"batch_size": 10, "local": {"no": "1"}}}),
        ("# \u00e9\nname: &x yes\ntrainer: {bar: *x}", {"name": "yes", "trainer": {"bar": "yes"}}),
        ("trainer: {devices: 2, bar: off, mode: off}", {"trainer": {"devices": 2, "bar": False, "mode": "off"}}),
        ("trainer: {flag: no, anything: {on: no}}", {"trainer": {"flag": False, "anything": {"on": False}}}),
        ("unknown: {no: no}", {"unknown": {False: False}}),
        ("- no", [False]),
        ("name: [", None),
    ],
)  # fmt: skip
def test_texts_are_taken_as_they_are_written(text: str, expected: object) -> None:
    quoted = quote_texts(text, _DECLARED)
    if expected is None:
        assert quoted == text
    else:
        assert yaml.safe_load(quoted) == expected


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("{country: no}", {"country": "no"}),
        ("{code: [0123, 2020, 1.10]}", {"code": ["0123", "2020", "1.10"]}),
        ("{on: true, b.c: ~}", {"on": "true", "b.c": None}),
    ],
)
@pytest.mark.parametrize("name", ["worldlm.data.TextFiles", "TextFiles"])
def test_arguments_of_classes_have_the_declared_types(name: str, where: str, expected: object) -> None:
    content = f"data: {{corpora: {{no: {_CORPUS % where}}}}}".replace("worldlm.data.TextFiles", name)
    corpus = yaml.safe_load(quote_texts(content, _DECLARED))["data"]["corpora"]["no"]
    assert corpus["init_args"] == {"train": "on", "max_tokens": 3, "where": expected}


def test_lists_and_mappings_on_a_command_line() -> None:
    words = ["fit", "--data.local", "{no: a.txt}", "--name", "no", "--trainer.anything={x: no}", "--x", "[no]"]
    words += ["--data.corpora.a.init_args.where", "{country: [no, 0123]}", "--data.corpora.no.init_args.max_tokens=3"]
    quoted = quote_words(words, _DECLARED)
    assert quoted[2] == '{"no": a.txt}'.replace("a.txt", '"a.txt"')
    assert quoted[-2] == '{"country": ["no", "0123"]}'
    assert [word for i, word in enumerate(quoted) if i not in (2, len(words) - 2)] == [
        word.replace("{x:", '{"x":') for i, word in enumerate(words) if i not in (2, len(words) - 2)
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nmodel:\n  lr:\n", "r.yaml:3: model.lr has no value; write one, or leave the key out"),
        ("data: {batch_size: 010}", "r.yaml:1: data.batch_size must be a decimal number, but is '010'"),
        ("data: {batch_size: 0x10}", "r.yaml:1: data.batch_size must be a decimal number, but is '0x10'"),
        ("model: {lr: 1:30}", "r.yaml:1: model.lr must be a decimal number, but is '1:30'"),
        ("data: {corpora: {a: }}", "r.yaml:1: data.corpora.a has no value; write one, or leave the key out"),
        (f"data: {{corpora: {{a: {_CORPUS % '~'}}}}}", "r.yaml:1: where has no value; write one, or leave the key out"),
    ],
)
def test_missing_values_and_odd_numbers_are_mistakes(text: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        check_scalars(Reader(text, "r.yaml"), _DECLARED)
    assert raised.value.mistakes == (message,)


@pytest.mark.parametrize(
    "text",
    [
        "name: ~\ntrainer: {bar: , anything: , devices: 2}",
        "model: {lr: .inf}\ndata: {batch_size: '010'}",
        "model: {lr: -1_0.5e-3}",
        "unknown: ",
        f"data: {{corpora: {{a: {(_CORPUS % '{a: b}').replace('max_tokens: 3', 'max_tokens: ~')}}}}}",
    ],
)
def test_other_values_are_allowed(text: str) -> None:
    check_scalars(Reader(text, "r.yaml"), _DECLARED)
