"""Organisations that train adapters, each with its own copy of the frozen model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import adapted, write_base
from organisations_at_home import of_node

from worldlm.models import LanguageModule, Lora
from worldlm.topology import Topology

Make = Callable[..., Any]


@pytest.fixture
def make_module(tmp_path: Path) -> Make:
    """Return a builder of models with adapters on a tiny Llama."""
    write_base(tmp_path / "base", "llama", vocab_size=32)

    def build(seed: int = 0, dropout: float = 0.0) -> LanguageModule:
        assert not dropout
        return adapted(tmp_path / "base", Lora(rank=2), seed=seed)

    return build


def test_organisations_come_to_the_bits_of_one_process(
    tree: Topology,
    at_home: Make,
    one_node: Make,
    fit: Make,
    whole_method: Make,
    make_module: Make,
    snapshot: Make,
    differences: Make,
) -> None:
    whole = snapshot(fit(tree, whole_method(), module=make_module()))
    for name, found in at_home(tree, one_node(tree)).items():
        expected = of_node(whole, name)
        for state in (found["state"], expected["state"]):
            state["memory"].pop("NodeMetrics", None)  # a federation has no text of its own to measure
        assert differences(found, expected) == [], name
