"""Residuals: which (K, V) pairs climb towards the root, and who may use them.

In the paper (arXiv 2405.14446), residuals are routed to the most appropriate sub-federation. How they are selected and
answered is this project's reading.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from worldlm.federation.messages import Residual
from worldlm.topology import Node, Topology


def select_residuals(fits: Mapping[str, float], num_residuals: int) -> list[str]:
    """Return the candidates that fit worst, worst first, ties up to rounding by name.

    Two children fit each other equally well, so rounding must not decide.

    Args:
        fits: Candidate -> how similar it is to the other nodes of its federation.
        num_residuals: Largest number of candidates to select.
    """
    return sorted(fits, key=lambda name: (round(fits[name], 5), name))[:num_residuals]


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


def why_kept_out(residual: Residual, receivers: Iterable[Node]) -> str | None:
    """Return why the rules of one of several nodes reject a residual; None if all accept it."""
    return next((reason for node in receivers if (reason := refusal(residual, node))), None)
