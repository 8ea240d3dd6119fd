"""The standard library of Python has four kinds of text for the quickstart."""

from __future__ import annotations

import io
import tokenize
from typing import get_args

import pytest

from worldlm.data import StandardLibrary
from worldlm.data.standard_library import Area


@pytest.mark.parametrize("area", get_args(Area))
def test_every_area_has_text_in_two_disjoint_splits(area: Area) -> None:
    corpus = StandardLibrary(area=area)
    train, validation = list(corpus.documents("train")), list(corpus.documents("validation"))
    assert sum(map(len, train)) > 300_000
    assert sum(map(len, validation)) > 30_000
    train_paragraphs = {" ".join(p.split()) for text in train for p in text.split("\n\n")}
    held_out = {" ".join(p.split()) for text in validation for p in text.split("\n\n")}
    assert not [p for p in train_paragraphs & held_out if len(p) >= 80]
    assert list(corpus.documents("validation")) == validation


def test_areas_differ_in_kind() -> None:
    def share_of_colons_at_line_ends(area: Area) -> float:
        lines = "\n".join(StandardLibrary(area=area).documents("validation")).splitlines()
        return sum(line.endswith(":") for line in lines) / len(lines)

    prose = max(share_of_colons_at_line_ends("topics"), share_of_colons_at_line_ends("docstrings"))
    code = min(share_of_colons_at_line_ends("network"), share_of_colons_at_line_ends("tools"))
    assert prose < 0.05 < code


def test_code_keeps_its_comments() -> None:
    text = next(StandardLibrary(area="tools").documents("train"))
    kinds = {token.type for token in tokenize.generate_tokens(io.StringIO(text).readline)}
    assert tokenize.COMMENT in kinds


def test_fingerprints_differ_by_area() -> None:
    assert len({StandardLibrary(area=area).fingerprint() for area in get_args(Area)}) == 4


def test_an_unknown_area_is_rejected() -> None:
    with pytest.raises(ValueError, match="area must be one of .* got 'topic'; did you mean 'topics'"):
        StandardLibrary(area="topic")  # type: ignore[arg-type]
