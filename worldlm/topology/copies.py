"""A node that a file asks for many times, written out with all that is below it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from worldlm.topology.checks import MAX_NAME_CHARACTERS
from worldlm.topology.tree import Node

MAX_NODES = 1_000_000
"""A world of more is refused before it takes memory."""


def cannot_be_written_out(root: Node, copies: Mapping[str, int]) -> tuple[Node, str] | None:
    """Say which node of a template cannot be written out, and why; None if all can.

    Args:
        root: The tree as its file has it.
        copies: How often to write a node, by name; a name that is missing stands for once, without a suffix.
    """
    wrong: list[tuple[Node, str]] = []
    _measure(root, copies, 0, wrong)
    return wrong[0] if wrong else None


def _measure(node: Node, copies: Mapping[str, int], num_suffix: int, wrong: list[tuple[Node, str]]) -> int:
    """Count what a template's node becomes in one copy of its parent; collect what is wrong, deepest first."""
    number = copies.get(node.name)
    num_suffix += 0 if number is None else len(f"_{number}")
    size = (number or 1) * (1 + sum(_measure(child, copies, num_suffix, wrong) for child in node.children))
    if len(node.name) + num_suffix > MAX_NAME_CHARACTERS:
        wrong.append((node, f"name and its suffixes have more than the {MAX_NAME_CHARACTERS} characters allowed"))
    if size > MAX_NODES:
        wrong.append((node, f"makes {size:,} nodes with all that is below it; {MAX_NODES:,} are allowed"))
    return size


def write_out(node: Node, copies: Mapping[str, int], suffix: str = "") -> Iterator[Node]:
    """Yield the copies of a template's node, `NAME_1` to `NAME_N`, and below each its own copies of what is below.

    What is below a copy has its suffix, and then its own: the third `hospital` of `region_2` is `hospital_2_3`.
    """
    number = copies.get(node.name)
    for copy in range(1, (number or 1) + 1):
        own = suffix if number is None else f"{suffix}_{copy}"
        children = tuple(one for child in node.children for one in write_out(child, copies, own))
        yield replace(node, name=node.name + own, children=children, copy=0 if number is None else copy)
