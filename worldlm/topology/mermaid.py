"""A topology as a Mermaid flowchart, which Markdown pages draw."""

from __future__ import annotations

from collections.abc import Iterator

from worldlm.topology.draw import facts
from worldlm.topology.tree import Node, Topology


def draw_mermaid(topology: Topology) -> str:
    """Draw the tree in Mermaid: a subgraph for every federation, what `draw_tree` tells in every node."""
    ids = {name: f"n{i}" for i, name in enumerate(topology.nodes)}  # names may be words of Mermaid's
    return "\n".join(["flowchart LR", *_lines(topology.root, None, ids, "  ")])


def _lines(node: Node, above: Node | None, ids: dict[str, str], indent: str) -> Iterator[str]:
    told = "<br/>".join([f"<b>{node.name}</b>", *(fact.replace('"', "#quot;") for fact in facts(node, above))])
    here = ids[node.name]
    if node.is_leaf:
        yield f'{indent}{here}["{told}"]'
        return
    yield f'{indent}subgraph {here}_federation[" "]'
    yield f'{indent}  {here}["{told}"]'
    for child in node.children:
        yield from _lines(child, node, ids, indent + "  ")
        yield f"{indent}  {here} --- {ids[child.name]}"
    yield f"{indent}end"
