"""A topology in another shape, for methods that know no tree, and a round of it in more sub-rounds.

Whatever the shape, a data node takes as many local steps in a round of the world as in the tree: methods are compared
at the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, TypeAlias

from worldlm.topology.settings import Settings
from worldlm.topology.tree import Node, Topology

Shape: TypeAlias = Literal["tree", "star", "single", "single_all_tokens"]
SHAPES: tuple[Shape, ...] = ("tree", "star", "single", "single_all_tokens")

ALL = "all"
"""Name of the corpus that mixes all others."""


def reshape(topology: Topology, shape: Shape) -> Topology:
    """Return a topology in another shape.

    Args:
        topology: The tree.
        shape: `tree` leaves it as it is; `star` see `star`; `single` and `single_all_tokens` see `single`.

    Raises:
        ValueError: If there is no such shape, or as `single`.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}, but is {shape!r}")
    if shape == "tree":
        return topology
    return star(topology) if shape == "star" else single(topology, all_tokens=shape == "single_all_tokens")


def star(topology: Topology) -> Topology:
    """Put all data nodes directly below the root.

    Each keeps its name, corpus, weight, and its settings as they came down to it; `num_local_steps` is multiplied by
    the sub-rounds of the federations that vanish, so that a round takes as many steps as before. A data node with
    children loses them. A root that holds data stays a participant of its own federation.

    What is lost: federations that hold no data of their own, with all that is theirs alone: weight, link, draw of
    participants, outer optimizer, and their own release. Data nodes have inherited their `privacy`, so every node is
    still clipped and noised by itself; but the guarantee for a whole federation as one unit is gone.
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

    The root gets the corpus `all`. Every data node below stays, as a listener with `num_local_steps: 0`: it receives
    the model, and it is measured on its own held-out text. A root that held data has it in `all`, and no listener. A
    root that is alone is left as it is.

    Args:
        topology: The tree.
        all_tokens: Whether the root takes as many steps in a round as all data nodes together, and so trains on as
            many tokens; else as many as the node that takes most.

    Raises:
        ValueError: If a data node demands privacy, which pooled text cannot give, or if nodes differ in `batch_size`,
            so that no number of steps would match.
    """
    root, nodes = topology.root, [node for node in topology.data_nodes if node is not topology.root]
    if not nodes:
        return topology
    if private := [n.name for n in topology.data_nodes if n.settings.privacy or n.settings.example_privacy]:
        raise ValueError(f"shape single pools the text of all nodes, but privacy is asked for at {', '.join(private)}")
    sizes = {node.settings.batch_size for node in topology.data_nodes if node.fits}
    if len(sizes) > 1:
        told = ", ".join(sorted(str(size or "the recipe's") for size in sizes))
        raise ValueError(f"shape single needs one batch_size, but the nodes of {topology.name} have {told}")
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
    """Return the federations of a tree that ask for `privacy`, and whose members a shape keeps without them."""
    kept = shaped.nodes
    return [
        node.name
        for node in tree.nodes.values()
        if node.settings.privacy is not None
        and (node.name not in kept or (node.children and kept[node.name].is_leaf))
        and any(below.name in kept for below in node.walk() if below is not node)
    ]


def split_rounds(topology: Topology, num_subrounds: int) -> Topology:
    """Let every federation below the root hold several sub-rounds, and divide the local steps among them.

    The root's own settings stay. With k sub-rounds, a node of a federation below the root takes num_local_steps / k
    steps a fit and as many in a round as before: kappa2 = k and kappa1 = num_local_steps / k of HierFAVG (Liu et al.,
    arXiv 1905.06641). Children of the root that have no federation of their own keep their steps.

    Args:
        topology: The tree.
        num_subrounds: Replaces that of every federation below the root; at least 1.

    Raises:
        ValueError: If there is no federation below the root, or a node's steps cannot be divided.
    """
    if all(child.is_leaf for child in topology.root.children):
        raise ValueError(f"num_subrounds is {num_subrounds}: {topology.name} has no federation below its root")
    root = topology.root
    deeper = tuple(_with_subrounds(child, num_subrounds) for child in root.children)
    visits, steps = visits_per_round(replace(root, children=deeper)), steps_per_round(topology)
    if wrong := [f"{steps[name]} of {name}" for name in steps if steps[name] % visits[name]]:
        raise ValueError(f"num_subrounds is {num_subrounds}, which does not divide the local steps: {', '.join(wrong)}")
    divided = {name: number // visits[name] for name, number in steps.items()}
    return replace(topology, root=replace(root, children=tuple(_with_steps(child, divided) for child in deeper)))


def steps_per_round(topology: Topology) -> dict[str, int]:
    """Count the local steps of every data node in one round of the world, all nodes participating."""
    visits = visits_per_round(topology.root)
    return {node.name: visits[node.name] * (node.settings.num_local_steps or 0) for node in topology.data_nodes}


def visits_per_round(root: Node) -> dict[str, int]:
    """Count how often every node would fit in one round of the world: once in each sub-round it is part of."""
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
