"""What annotations say, held against values."""

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
    ("value", "hint", "holds"),
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
def test_a_value_is_of_a_type_or_not(value: object, hint: object, holds: bool) -> None:
    assert matches_type(value, hint) is holds


def test_the_field_that_is_wrong_is_named() -> None:
    check_fields(Tree(name="t", leaves=[Leaf(size=1.0, kind="ash")], by_name={"a": torch.zeros(1)}, notes={"x": [3]}))
    with pytest.raises(TypeError, match="leaves is not as declared"):
        check_fields(Tree(name="t", leaves=[Leaf(size=1.0), Leaf(size="big")]))  # type: ignore[arg-type]
