"""Other shapes of a topology, for methods without a tree, and rounds split into more sub-rounds.

In every shape, a data node takes as many local steps per round of the world as in the tree. Methods are therefore
compared at equal numbers of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, TypeAlias

from worldlm.topology.errors import check_choice, join_names
from worldlm.topology.settings import Settings
from worldlm.topology.tree import Node, Topology

Shape: TypeAlias = Literal["tree", "star", "single", "single_all_tokens"]
SHAPES: tuple[Shape, ...] = ("tree", "star", "single", "single_all_tokens")

ALL = "all"
"""Name of the corpus that mixes all other corpora."""


def reshape(topology: Topology, shape: Shape) -> Topology:
    """Return a topology in another shape.

    Args:
        topology: The tree.
        shape: `tree` changes nothing; for `star` see `star`; for `single` and `single_all_tokens` see `single`.

    Raises:
        ValueError: If the shape is unknown, or as in `single`.
    """
    check_choice("shape", shape, SHAPES)
    if shape == "tree":
        return topology
    return star(topology) if shape == "star" else single(topology, all_tokens=shape == "single_all_tokens")


def star(topology: Topology) -> Topology:
    """Put all data nodes directly below the root.

    Each keeps its name, corpus, weight and settings, the inherited ones included. `num_local_steps` is multiplied by
    the sub-rounds of the removed federations, so that a round takes as many steps as before. A data node with children
    loses them. A root that holds data stays a participant of its own federation.

    Federations without data of their own are removed, and with them their weight, link, draw of participants, outer
    optimizer and privatised upload. Data nodes have inherited their `privacy`, so each update is still clipped and
    noised by itself; but no federation is protected as a unit any more.
    """
    steps, root = steps_per_round(topology), topology.root
    outer = root.settings.num_subrounds
    children = tuple(
        replace(node, children=(), settings=replace(node.settings, num_local_steps=steps[node.name] // outer))
        for node in topology.data_nodes
        if node is not root
    )
    return replace(topology, root=replace(root, children=children))


def single(topology: Topology, *, all_tokens: bool = False) -> Topology:
    """Train one model, at the root, on the mixture of all corpora: centralised training.

    The root gets the corpus `all`. Every data node below the root becomes a listener with `num_local_steps: 0`: it
    receives the model and evaluates it on its own held-out text. If the root held data, its corpus is part of `all`,
    and no listener replaces it. A topology without data nodes below the root is returned unchanged.

    Args:
        topology: The tree.
        all_tokens: Whether the root takes as many steps per round as all data nodes together, and so trains on as many
            tokens. If not, it takes as many as the node with the most steps.

    Raises:
        ValueError: If a data node is private, because pooled text is not, or if nodes differ in `batch_size`, so that
            no number of steps would match.
    """
    root, nodes = topology.root, [node for node in topology.data_nodes if node is not topology.root]
    if not nodes:
        return topology
    if private := [n.name for n in topology.data_nodes if n.settings.privacy or n.settings.example_privacy]:
        raise ValueError(
            f"shape single pools the text of all nodes, but these nodes are private: {join_names(private)}"
        )
    sizes = {node.settings.batch_size for node in topology.data_nodes if node.fits}
    if len(sizes) > 1:
        listed = ", ".join(sorted(str(size or "the recipe's") for size in sizes))
        raise ValueError(f"shape single needs one batch_size, but the nodes of {topology.name} have {listed}")
    steps = steps_per_round(topology).values()
    settings = replace(
        root.settings,
        num_local_steps=sum(steps) if all_tokens else max(steps),
        batch_size=sizes.pop(),
        num_subrounds=1,
    )
    listeners = tuple(replace(node, children=(), settings=replace(node.settings, num_local_steps=0)) for node in nodes)
    return replace(topology, root=replace(root, corpus=ALL, settings=settings, children=listeners))


def gone_as_one(tree: Topology, shaped: Topology) -> list[str]:
    """Return the federations with `privacy` that a shape removes although it keeps some of their members."""
    remaining = shaped.nodes
    return [
        node.name
        for node in tree.nodes.values()
        if node.settings.privacy is not None
        and (node.name not in remaining or (node.children and remaining[node.name].is_leaf))
        and any(below.name in remaining for below in node.walk() if below is not node)
    ]


def split_rounds(topology: Topology, num_subrounds: int) -> Topology:
    """Give every federation below the root several sub-rounds, and divide the local steps among them.

    The root keeps its settings. With k sub-rounds, a node of a federation below the root takes num_local_steps / k
    steps per fit and as many per round as before. In terms of HierFAVG (Liu et al., arXiv 1905.06641), kappa2 = k and
    kappa1 = num_local_steps / k. Children of the root that have no federation of their own keep their steps.

    Args:
        topology: The tree.
        num_subrounds: The new value for every federation below the root; at least 1.

    Raises:
        ValueError: If there is no federation below the root, or a node's steps cannot be divided.
    """
    if all(child.is_leaf for child in topology.root.children):
        raise ValueError(f"num_subrounds is {num_subrounds}: {topology.name} has no federation below its root")
    root = topology.root
    deeper = tuple(_with_subrounds(child, num_subrounds) for child in root.children)
    visits, steps = visits_per_round(replace(root, children=deeper)), steps_per_round(topology)
    if indivisible := [f"{steps[name]} of {name}" for name in steps if steps[name] % visits[name]]:
        raise ValueError(
            f"num_subrounds is {num_subrounds}, which does not divide the local steps: {join_names(indivisible)}"
        )
    divided = {name: number // visits[name] for name, number in steps.items()}
    return replace(topology, root=replace(root, children=tuple(_with_steps(child, divided) for child in deeper)))


def steps_per_round(topology: Topology) -> dict[str, int]:
    """Return the local steps of every data node per round of the world if all nodes participate."""
    visits = visits_per_round(topology.root)
    return {node.name: visits[node.name] * (node.settings.num_local_steps or 0) for node in topology.data_nodes}


def visits_per_round(root: Node) -> dict[str, int]:
    """Return how often each node fits per round of the world: once in every sub-round of its federation."""
    return dict(_visits(root, root.settings.num_subrounds))


def _visits(node: Node, number: int) -> Iterator[tuple[str, int]]:
    yield node.name, number
    for child in node.children:
        yield from _visits(child, number if child.is_leaf else number * child.settings.num_subrounds)


def _with_subrounds(node: Node, num_subrounds: int) -> Node:
    settings: Settings = node.settings if node.is_leaf else replace(node.settings, num_subrounds=num_subrounds)
    children = tuple(_with_subrounds(child, num_subrounds) for child in node.children)
    return replace(node, settings=settings, children=children)


def _with_steps(node: Node, steps: dict[str, int]) -> Node:
    settings = replace(node.settings, num_local_steps=steps.get(node.name, node.settings.num_local_steps))
    return replace(node, settings=settings, children=tuple(_with_steps(child, steps) for child in node.children))
