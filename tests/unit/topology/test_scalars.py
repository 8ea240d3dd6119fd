"""YAML values by declared type, against PyYAML's guesses."""

from typing import Any, Literal

import pytest
import yaml

from worldlm.topology.scalars import coerce


def read(text: str, declared: Any) -> Any:
    return coerce(yaml.compose(text, Loader=yaml.SafeLoader), declared)


@pytest.mark.parametrize(
    ("text", "declared", "value"),
    [
        ("6e-4", float, 6e-4),
        ("1.5e3", float, 1500.0),
        ("3e12", int, 3_000_000_000_000),
        ("1_000", int, 1000),
        ("9007199254740993", int, 9007199254740993),
        ("5", float, 5.0),
        ("no", str, "no"),
        ("off", bool, False),
        ("On", bool, True),
        ("12:30", str, "12:30"),
        ("2024-01-02", str, "2024-01-02"),
        ("030", str, "030"),
        ("{a: }", Any, {"a": None}),
        ("~", int | None, None),
        ("'~'", str | None, "~"),
        ("[no, 7]", tuple[str, ...], ("no", "7")),
        ("reset", Literal["keep", "reset"], "reset"),
        ("{a: [6e-4, off, 12:30, null, '1', 2]}", Any, {"a": (6e-4, False, "12:30", None, "1", 2)}),
        ("{<<: {a: 1, b: 2}, a: 3}", Any, {"a": 3, "b": 2}),
    ],
)
def test_reads_by_declared_type(text: str, declared: Any, value: Any) -> None:
    got = read(text, declared)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "declared", "expected"),
    [
        ("12:30", int, "must be a whole number, but is '12:30'"),
        ("010", int, "must be a whole number"),
        ("true", int, "must be a whole number"),
        ("9" * 5000, int, "must be a finite number"),
        ("1e999", float, "must be a finite number"),
        (".nan", float, "must be a number"),
        ("'1'", float, "must be a number, but is the quoted text '1'"),
        ("1", bool, "must be true or false, but is '1'"),
        ("[1]", int, "must be a whole number, but is a list"),
        ("{a: 1}", str, "must be text, but is a mapping"),
        ("null", str, "must be text, but is nothing"),
        ('"\\ud800"', str, "must be valid Unicode"),
        ("[1, [2]]", tuple[int, ...], "must be a whole number, but is a list"),
    ],
)
def test_rejects_values_of_another_type(text: str, declared: Any, expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        read(text, declared)
    assert str(caught.value).startswith(expected)
