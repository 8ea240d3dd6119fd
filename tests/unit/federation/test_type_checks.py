"""Values compared with type annotations."""

from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict

import pytest
import torch

from worldlm.federation.type_checks import check_fields, matches_type


@dataclass(kw_only=True)
class Leaf:
    size: float
    kind: Literal["oak", "ash"] = "oak"


@dataclass(kw_only=True)
class Tree:
    name: str
    leaves: list[Leaf] = field(default_factory=list)
    by_name: dict[str, torch.Tensor] | None = None
    path: tuple[str, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)


class Bird(TypedDict):
    wings: int
    songs: NotRequired[list[str]]


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, int, True),
        (3, float, True),
        (3.0, int, False),
        ("x", Any, True),
        (None, int | None, True),
        ("x", int | None, False),
        ({"a": 1}, dict[str, int], True),
        ({1: 1}, dict[str, int], False),
        ({"a": torch.zeros(2)}, dict[str, int], False),
        ([], list[int], True),
        ([1, "x"], list[int], False),
        (("a", "b"), tuple[str, ...], True),
        (["a"], tuple[str, ...], False),
        ("ash", Literal["oak", "ash"], True),
        (torch.zeros(2), Literal["oak", "ash"], False),
        (Leaf(size=1), Leaf, True),
        (Leaf(size="x"), Leaf, False),  # type: ignore[arg-type]
        ({"size": 1}, Leaf, False),
        ({"wings": 2}, Bird, True),
        ({"wings": 2, "songs": ["a"], "age": "unknown"}, Bird, True),
        ({"wings": 2, "songs": [1]}, Bird, False),
        ({"songs": []}, Bird, False),
        ([2], Bird, False),
    ],
)
def test_matches_type(value: object, hint: object, expected: bool) -> None:
    assert matches_type(value, hint) is expected


def test_the_error_contains_the_name_of_the_field() -> None:
    check_fields(Tree(name="t", leaves=[Leaf(size=1.0, kind="ash")], by_name={"a": torch.zeros(1)}, notes={"x": [3]}))
    with pytest.raises(TypeError, match="leaves does not have its declared type"):
        check_fields(Tree(name="t", leaves=[Leaf(size=1.0), Leaf(size="big")]))  # type: ignore[arg-type]
