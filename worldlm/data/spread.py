"""How text is spread over nodes, as lines of text: tokens of each node, and a histogram of the values of a field."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worldlm.data.cutting import packed_of
from worldlm.topology import Node
from worldlm.topology.checks import shorten

_BAR = 30
"""Characters of the longest bar."""
_MOST_COLUMNS = 8
"""Values with a column of their own; the others share one."""
_BLOCKS = " ▁▂▃▄▅▆▇█"
_VALUE_CHARACTERS = 12


@dataclass(frozen=True, kw_only=True)
class NodeText:
    """The training text of a node."""

    name: str
    """The node."""
    corpus: str
    """Its corpus."""
    num_tokens: int
    """Its tokens."""
    values: Mapping[str, int]
    """Tokens by the value of the field that its partition splits by; empty if there is none."""


def node_texts(nodes: Sequence[Node], blocks: Mapping[str, Any]) -> list[NodeText]:
    """Describe the training text of nodes.

    Args:
        nodes: Nodes with data.
        blocks: Node -> the blocks of its training text.
    """
    texts = []
    for node in nodes:
        packed = [part for part in packed_of(blocks[node.name]) if part is not None]
        values: Counter[str] = sum((Counter(part.values) for part in packed), Counter())
        num_tokens = sum(part.num_tokens for part in packed)
        texts.append(NodeText(name=node.name, corpus=str(node.corpus), num_tokens=num_tokens, values=values))
    return texts


def spread_lines(nodes: Sequence[NodeText]) -> Iterator[str]:
    """Yield a line with the tokens of each node, and the shares of the values of a field in each node.

    Args:
        nodes: The nodes.
    """
    most = max((node.num_tokens for node in nodes), default=0)
    width = max(len(f"{node.num_tokens:,}") for node in nodes) if nodes else 0
    yield "training tokens of each node:"
    for node, label in zip(nodes, _labels(nodes), strict=True):
        bar = "█" * max(round(_BAR * node.num_tokens / most), 1) if most else ""
        yield f"  {label}  {node.num_tokens:>{width},}  {bar}"
    if split := [node for node in nodes if node.values]:
        yield from _histogram(split)


def _histogram(nodes: Sequence[NodeText]) -> Iterator[str]:
    totals: Counter[str] = sum((Counter(node.values) for node in nodes), Counter())
    columns = [value for value, _ in totals.most_common(_MOST_COLUMNS)]
    heads = [shorten(value, _VALUE_CHARACTERS) for value in columns]
    if len(totals) > len(columns):
        heads.append(f"{len(totals) - len(columns)} others")
    widths = [max(len(head), 6) for head in heads]
    yield "share of each value in the training tokens of a node:"
    labels = _labels(nodes)
    yield "  ".join([" " * (len(labels[0]) + 2), *(f"{head:>{w}}" for head, w in zip(heads, widths, strict=True))])
    for node, label in zip(nodes, labels, strict=True):
        shares = [node.values.get(value, 0) / sum(node.values.values()) for value in columns]
        shares += [max(1 - sum(shares), 0.0)] * (len(heads) - len(columns))
        cells = [f"{_cell(share):>{w}}" for share, w in zip(shares, widths, strict=True)]
        yield "  ".join([f"  {label}", *cells]).rstrip()


def _cell(share: float) -> str:
    """Return a share as a bar of one character and a percentage; nothing for 0."""
    return f"{_BLOCKS[max(round(share * 8), 1)]} {share:4.0%}" if share > 0 else ""


def _labels(nodes: Sequence[NodeText]) -> list[str]:
    """Return the names of nodes and of their corpora, in two columns."""
    first, second = (max(len(getattr(node, key)) for node in nodes) for key in ("name", "corpus"))
    return [f"{node.name:<{first}}  {node.corpus:<{second}}" for node in nodes]
