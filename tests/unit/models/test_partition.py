"""The split of a model's parameters into backbone, key layers and value layers."""

import re

import pytest

from worldlm.models import Split, partition

NAMES = [
    "wte.weight",
    "blocks.0.attn.weight",
    "blocks.0.ffn.weight",
    "blocks.1.attn.weight",
    "blocks.1.ffn.weight",
    "norm_f.weight",
]

PARTS = [
    ("wte.weight", "backbone"),
    ("blocks.0.attn.weight", "backbone"),
    ("blocks.0.ffn.weight", "backbone"),
    ("blocks.1.attn.weight", "keys"),
    ("blocks.1.ffn.weight", "values"),
    ("norm_f.weight", "values"),
]
"""The last block is keys and values."""


def test_keys_are_matched_first_then_values_then_the_backbone() -> None:
    split = Split(keys=(r"blocks\.1\.attn",), values=(r"blocks\.1\.", r"norm_f\."))
    parts = partition(NAMES, split)
    assert list(parts.items()) == PARTS


def test_the_backbone_keeps_what_its_patterns_match() -> None:
    split = Split(keys=(r"attn",), values=("ffn", "norm_f", "wte"), backbone=("wte", r"blocks\.0\."))
    assert list(partition(NAMES, split).items()) == PARTS


def test_a_backbone_pattern_without_matches_is_reported() -> None:
    message = "split.backbone pattern 'wet.weight' matches no parameter; the nearest is 'wte.weight'"
    with pytest.raises(ValueError, match=re.escape(message)):
        partition(NAMES, Split(keys=("attn",), values=("ffn",), backbone=("wet.weight",)))


def test_block_one_is_not_block_eleven() -> None:
    parts = partition(
        ["wte", "blocks.1.attn", "blocks.11.attn"],
        Split(keys=(r"blocks\.11\.",), values=(r"blocks\.1\.",)),
    )
    assert parts == {"wte": "backbone", "blocks.1.attn": "values", "blocks.11.attn": "keys"}


def test_a_pattern_without_matches_is_reported_with_the_nearest_parameter() -> None:
    split = Split(keys=(r"blocks\.1\.attn\.weigth",), values=("norm_f",))
    message = (
        r"split.keys pattern 'blocks\\.1\\.attn\\.weigth' matches no parameter; "
        r"the nearest is 'blocks.1.attn.weight'"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        partition(NAMES, split)


def test_a_pattern_whose_parameters_are_taken_is_reported() -> None:
    message = (
        "split.values pattern 'attn' has no effect: "
        "earlier patterns already match the same parameters, such as 'blocks.0.attn.weight'"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        partition(NAMES, Split(keys=("blocks",), values=("norm_f", "attn")))


def test_an_empty_backbone_is_reported() -> None:
    with pytest.raises(ValueError, match="the backbone is empty"):
        partition(NAMES, Split(keys=("attn",), values=(".",)))


@pytest.mark.parametrize("part", ["keys", "values"])
def test_keys_or_values_may_be_empty_but_not_both(part: str) -> None:
    parts = partition(NAMES, Split(**{part: ("ffn",)}))
    assert set(parts.values()) == {"backbone", part}
    with pytest.raises(ValueError, match=r"split\.keys and split\.values are empty: at least one of them needs"):
        Split(backbone=("wte",))


def test_invalid_regular_expressions_are_all_reported() -> None:
    with pytest.raises(ValueError, match="not a regular expression") as caught:
        Split(keys=("attn(",), values=("ffn", "*"))
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("split.keys pattern 'attn(' is not a regular expression: ")
    assert lines[1].startswith("split.values pattern '*' is not a regular expression: ")
    assert len(lines) == 2


def test_a_string_instead_of_a_list_is_rejected() -> None:
    with pytest.raises(ValueError, match="split.keys is 'attn': write a list of patterns"):
        Split(keys="attn", values=("ffn",))


def test_all_mistakes_are_reported_together() -> None:
    with pytest.raises(ValueError, match="wrong") as caught:
        partition([*NAMES, "wte.weight"], Split(keys=("wrong",), values=("worse",)))
    assert [line.split()[0] for line in str(caught.value).splitlines()] == [
        "parameter",
        "split.keys",
        "split.values",
    ]
