"""Residuals: selecting (K, V) pairs and routing them to other federations.

In the paper (arXiv 2405.14446), residuals are routed to the most appropriate sub-federation. The criteria of selection
and comparison are this project's reading (ALGORITHM section 5).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from worldlm.federation.attention import Similarity, similarities
from worldlm.federation.messages import Residual
from worldlm.topology import Node, Topology


def select_residuals(weights: Mapping[str, float], children: Collection[str], num_residuals: int) -> list[str]:
    """Return the children with the lowest attention weights.

    Args:
        weights: Attention weight by participant; a node that holds data is a participant of its own federation.
        children: The participants that may be selected.
        num_residuals: Largest number of children to select.

    Returns:
        The names with the lowest weights, lowest first, ties by name; empty with fewer than two participants.
    """
    if len(weights) < 2:
        return []
    return sorted(children, key=lambda name: (weights[name], name))[:num_residuals]


def refusal(residual: Residual, receiver: Node) -> str | None:
    """Return why the rules of a node reject a residual; None if they accept it."""
    accepted = receiver.settings.residuals.accept_from
    if accepted is None or residual.jurisdiction in accepted:
        return None
    if not accepted:
        return f"{receiver.name} accepts no residuals"
    jurisdiction = residual.jurisdiction or "a node without a jurisdiction"
    return f"{receiver.name} accepts residuals from {', '.join(accepted)} only, not from {jurisdiction}"


def is_allowed_at(residual: Residual, holder: Node, topology: Topology) -> bool:
    """Return whether the rules of a changed topology allow a residual at a node.

    Its origin must still exist. Every node that it was sent from must share residuals. Unless the holder is the
    origin or its ancestor, it must accept both the former and the current jurisdiction of the origin.

    Args:
        residual: The residual.
        holder: The node that has the residual, or that is about to receive it.
        topology: The new topology with its rules.
    """
    if residual.origin not in topology.nodes:
        return False
    origin_path, holder_path = (topology.path(name) for name in (residual.origin, holder.name))
    origin, senders = origin_path[-1], [node for node in origin_path if node not in holder_path]
    if not all(node.settings.residuals.share for node in senders):
        return False
    current = replace(residual, jurisdiction=origin.settings.jurisdiction)
    return holder in origin_path or all(refusal(version, holder) is None for version in (residual, current))


@dataclass(frozen=True, slots=True)
class Route:
    """The routing decision of a node for a residual."""

    home: str | None
    """The child that the residual fits best; None if no fit is good enough."""
    fits: dict[str, float]
    """Child -> fit of the residual, for each child that was considered."""
    refusals: tuple[str, ...]
    """Why children reject the residual."""


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

    The fit is the `similarity` of two changes since the common initial keys: that of the residual's key layers, and
    that of the key layers that the child uploaded last.

    Args:
        residual: The residual.
        children: The candidates, by name, without the child that the residual comes from.
        children_keys: Their last uploaded key layers; a child without an upload is skipped.
        reference: The common initial key layers K0.
        min_fit: Lower bound, excluded, of the best fit.
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
        by_block = similarities(residual.keys, children_keys[name], reference, similarity=similarity)
        fits[name] = by_block[""]
    best = max(fits, key=lambda name: fits[name], default=None)
    home = best if best is not None and fits[best] > min_fit else None
    return Route(home, fits, tuple(refusals))
