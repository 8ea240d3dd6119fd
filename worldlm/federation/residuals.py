"""Residuals: which (K, V) pairs leave home, and where they go.

The paper (arXiv 2405.14446) says that residuals are routed to the most appropriate sub-federation; how they
are selected and compared is this project's reading (ALGORITHM section 5).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from worldlm.federation.attention import Similarity, similarities
from worldlm.federation.messages import Residual
from worldlm.topology import Node


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
