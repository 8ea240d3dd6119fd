"""A topology as a Mermaid flowchart, which Markdown pages draw."""

from __future__ import annotations

from collections.abc import Iterator

from worldlm.topology.draw import facts
from worldlm.topology.tree import Node, Topology


def draw_mermaid(topology: Topology) -> str:
    """Draw the tree in Mermaid: a subgraph per federation, and in each node the text that `draw_tree` shows."""
    ids = {name: f"n{i}" for i, name in enumerate(topology.nodes)}  # a name may be a keyword of Mermaid
    return "\n".join(["flowchart LR", *_lines(topology.root, None, ids, "  ")])


def _lines(node: Node, above: Node | None, ids: dict[str, str], indent: str) -> Iterator[str]:
    label = "<br/>".join([f"<b>{node.name}</b>", *(fact.replace('"', "#quot;") for fact in facts(node, above))])
    node_id = ids[node.name]
    if node.is_leaf:
        yield f'{indent}{node_id}["{label}"]'
        return
    yield f'{indent}subgraph {node_id}_federation[" "]'
    yield f'{indent}  {node_id}["{label}"]'
    for child in node.children:
        yield from _lines(child, node, ids, indent + "  ")
        yield f"{indent}  {node_id} --- {ids[child.name]}"
    yield f"{indent}end"
