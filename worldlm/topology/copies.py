"""Nodes with `copies`: the copies of such a node and of its descendants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from worldlm.topology.checks import MAX_NAME_CHARACTERS
from worldlm.topology.tree import Node

MAX_NODES = 1_000_000
"""A larger world is rejected before it is built in memory."""


def copy_problem(root: Node, copies: Mapping[str, int]) -> tuple[Node, str] | None:
    """Return a node that cannot be copied and the reason; None if all nodes can.

    Args:
        root: The tree as the file defines it.
        copies: Node name -> number of copies; a node that is missing here gets one copy without a suffix.
    """
    problems: list[tuple[Node, str]] = []
    _measure(root, copies, 0, problems)
    return problems[0] if problems else None


def _measure(node: Node, copies: Mapping[str, int], num_suffix: int, problems: list[tuple[Node, str]]) -> int:
    """Count the nodes that a node expands to in one copy of its parent; collect the problems, deepest first."""
    number = copies.get(node.name)
    num_suffix += 0 if number is None else len(f"_{number}")
    size = (number or 1) * (1 + sum(_measure(child, copies, num_suffix, problems) for child in node.children))
    if len(node.name) + num_suffix > MAX_NAME_CHARACTERS:
        problems.append((node, f"name with its suffixes is longer than the {MAX_NAME_CHARACTERS} characters allowed"))
    if size > MAX_NODES:
        problems.append((node, f"expands to {size:,} nodes, descendants included; {MAX_NODES:,} are allowed"))
    return size


def expand_copies(node: Node, copies: Mapping[str, int], suffix: str = "") -> Iterator[Node]:
    """Yield the copies of a node, `NAME_1` to `NAME_N`, each with its own copies of the descendants.

    A descendant's name gets the suffix of the copy above it, and then its own: the third `hospital` of `region_2` is
    `hospital_2_3`.
    """
    number = copies.get(node.name)
    for copy in range(1, (number or 1) + 1):
        full_suffix = suffix if number is None else f"{suffix}_{copy}"
        children = tuple(expanded for child in node.children for expanded in expand_copies(child, copies, full_suffix))
        yield replace(node, name=node.name + full_suffix, children=children, copy=0 if number is None else copy)
