"""Whose text is protected, in whose model."""

from typing import Any

import pytest

from worldlm.commands.inference.privacy import describe, protections
from worldlm.topology import Topology, parse_topology

WORLD = """
name: states
settings: {num_local_steps: 1}
root:
  name: world
  children:
    - name: north
      settings: {privacy: {clip_norm: 1.0, noise_multiplier: 2.0, delta: 1.0e-6}}
      children:
        - {name: a, corpus: a}
        - {name: b, corpus: b, settings: {example_privacy: {clip_norm: 1.0, noise_multiplier: 0.5}}}
    - {name: c, corpus: c}
"""
FIGURES: dict[str, dict[str, Any]] = {
    "north": {"epsilon": 3.0},
    "a": {"epsilon": 1.5},
    "b": {"epsilon": 1.5, "example_epsilon": None},
    "c": {},
}


@pytest.fixture(scope="module")
def tree() -> Topology:
    return parse_topology(WORLD, "states.yaml")


@pytest.mark.parametrize(
    ("source", "holder", "expected"),
    [
        ("a", "a", []),
        ("a", "b", [("updates", "a")]),
        ("a", "north", [("updates", "a")]),
        ("a", "world", [("updates", "a"), ("updates", "north")]),
        ("a", "c", [("updates", "a"), ("updates", "north")]),
        ("b", "b", [("examples", "b")]),
        ("b", "a", [("examples", "b"), ("updates", "b")]),
        ("b", "c", [("examples", "b"), ("updates", "b"), ("updates", "north")]),
        ("c", "a", []),
        ("c", "world", []),
    ],
)
def test_noise_protects_beyond_where_it_was_added(
    tree: Topology, source: str, holder: str, expected: list[tuple[str, str]]
) -> None:
    found = protections(tree, tree.nodes[source], holder, FIGURES)
    assert [(protection.kind, protection.node) for protection in found] == expected


def test_a_guarantee_in_words(tree: Topology) -> None:
    of_updates = "for all text at and below the node, towards its parent and all beyond it"
    assert [describe(protection) for protection in protections(tree, tree.nodes["b"], "c", FIGURES)] == [
        "its training steps: no finite epsilon, noise multiplier 0.5",
        f"the updates of `b`: epsilon 1.50 at delta 1e-06, {of_updates}, noise multiplier 2",
        f"the updates of `north`: epsilon 3.00 at delta 1e-06, {of_updates}, noise multiplier 2",
    ]
    figures = {"b": {"epsilon": 1507390.0}}
    (large,) = map(describe, protections(tree, tree.nodes["b"], "c", figures))
    assert large.endswith(", noise multiplier 2; so large an epsilon protects little or nothing")
