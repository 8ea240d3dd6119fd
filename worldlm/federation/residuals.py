"""Residuals: which (K, V) pairs leave home, and where they go.

The paper (arXiv 2405.14446) says that residuals are routed to the most appropriate sub-federation; how they
are selected and compared is this project's reading (ALGORITHM section 5).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from worldlm.federation.attention import Similarity, similarities
from worldlm.federation.messages import Residual
from worldlm.topology import Node, Topology


def select_residuals(weights: Mapping[str, float], children: Collection[str], num_residuals: int) -> list[str]:
    """Name the children that attention took least of.

    Args:
        weights: Attention weight by participant; a node that holds data is a participant of its own federation.
        children: The participants that may be named.
        num_residuals: How many to name, at most.

    Returns:
        The names with the lowest weights, lowest first, ties by name; none of fewer than two participants.
    """
    if len(weights) < 2:
        return []
    return sorted(children, key=lambda name: (weights[name], name))[:num_residuals]


def refusal(residual: Residual, receiver: Node) -> str | None:
    """Say why a node's rules keep a residual out; None if they let it in."""
    accepted = receiver.settings.residuals.accept_from
    if accepted is None or residual.jurisdiction in accepted:
        return None
    if not accepted:
        return f"{receiver.name} accepts residuals from nobody"
    home = residual.jurisdiction or "a node without a jurisdiction"
    return f"{receiver.name} accepts residuals from {', '.join(accepted)} only, not from {home}"


def is_allowed_at(residual: Residual, holder: Node, topology: Topology) -> bool:
    """Say whether a residual may be at a node by the rules of a topology that has changed on its way.

    Its origin must still be there. Every node that it has left to come here must share it, and the node that holds it
    must take it in, under its origin's law of then and of now, unless it comes from below.

    Args:
        residual: The residual.
        holder: The node at which it is, or to which it is about to be sent.
        topology: The tree, with the rules.
    """
    if residual.origin not in topology.nodes:
        return False
    ways = [topology.path(name) for name in (residual.origin, holder.name)]
    origin, left = ways[0][-1], [node for node in ways[0] if node not in ways[1]]
    if not all(node.settings.residuals.share for node in left):
        return False
    now = replace(residual, jurisdiction=origin.settings.jurisdiction)
    return holder in ways[0] or all(refusal(one, holder) is None for one in (residual, now))


@dataclass(frozen=True, slots=True)
class Route:
    """Where a residual goes from one place in the tree."""

    home: str | None
    """The child it fits best; None if it fits none of them well enough."""
    fits: dict[str, float]
    """How well it fits each child that was asked."""
    refusals: tuple[str, ...]
    """Why children were passed over."""


def route(
    residual: Residual,
    children: Mapping[str, Node],
    children_keys: Mapping[str, Mapping[str, Tensor]],
    reference: Mapping[str, Tensor],
    *,
    min_fit: float,
    similarity: Similarity = "cosine",
) -> Route:
    """Find the child that a residual fits best.

    The fit is `similarity` between what the residual's and the child's last uploaded key layers learnt since
    the common initial keys.

    Args:
        residual: The residual.
        children: The children that may be asked, by name (not the one it came from).
        children_keys: Their last uploaded key layers; a child that never uploaded is not asked.
        reference: The common initial key layers K0.
        min_fit: The best fit must be above this.
        similarity: As in attention.

    Returns:
        The route; ties go to the first name in alphabetical order.
    """
    refusals, fits = [], {}
    for name in sorted(children):
        if name not in children_keys:
            continue
        if reason := refusal(residual, children[name]):
            refusals.append(reason)
            continue
        found = similarities(residual.keys, children_keys[name], reference, similarity=similarity)
        fits[name] = found[""]
    best = max(fits, key=lambda name: fits[name], default=None)
    home = best if best is not None and fits[best] > min_fit else None
    return Route(home, fits, tuple(refusals))
