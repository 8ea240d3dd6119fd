"""The privacy guarantees that a node's model gives for the text of every data node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from worldlm.runs.guarantees import is_useful, meaning
from worldlm.topology import Node, PrivacyOfExamples, Topology


@dataclass(frozen=True, kw_only=True, slots=True)
class Protection:
    """A guarantee for a text in a model."""

    kind: Literal["examples", "updates"]
    """`examples` protects blocks, documents or persons, by DP-SGD. `updates` protects all text at and below a node."""
    node: str
    """The node whose privacy ledger counts it."""
    epsilon: float | None
    """The epsilon spent; None if it is not finite."""
    delta: float | None
    """The delta of this epsilon; None if the topology's settings are not known."""
    noise_multiplier: float | None
    """Noise divided by the clipping norm; None if it is not known."""
    unit: str | None = None
    """Of examples: `block`, `document` or `person`."""


def protections(
    topology: Topology, source: Node, holder: str, figures: Mapping[str, Mapping[str, Any]]
) -> list[Protection]:
    """Return the guarantees for a data node's text in the model of another node, or in its own.

    Noise in training steps protects the text in every model. Noise on updates protects it above the edge where it is
    added: the node's own weights, and those of a federation below that edge, are not covered.

    Args:
        topology: The tree.
        source: The node that has the text.
        holder: The node that has the model.
        figures: The figures of a round by node, with `epsilon` and `example_epsilon` where any was spent.
    """
    found = []
    own = figures.get(source.name, {})
    if "example_epsilon" in own:
        found.append(_protection("examples", source, own["example_epsilon"]))
    above = {node.name for node in topology.path(holder)}
    node: Node | None = source
    while node is not None and node.name not in above:
        if "epsilon" in (spent := figures.get(node.name, {})):
            found.append(_protection("updates", node, spent["epsilon"]))
        node = topology.parent(node.name)
    return found


def _protection(kind: Literal["examples", "updates"], node: Node, epsilon: float | None) -> Protection:
    settings = node.settings.example_privacy if kind == "examples" else node.settings.privacy
    return Protection(
        kind=kind,
        node=node.name,
        epsilon=epsilon,
        delta=None if settings is None else settings.delta,
        noise_multiplier=None if settings is None else settings.noise_multiplier,
        unit=settings.unit if isinstance(settings, PrivacyOfExamples) else None,
    )


def describe(protection: Protection) -> str:
    """Return a guarantee in words."""
    whose = "its training steps" if protection.kind == "examples" else f"the updates of `{protection.node}`"
    noise = "" if protection.noise_multiplier is None else f", noise multiplier {protection.noise_multiplier:g}"
    if protection.epsilon is None:
        return f"{whose}: no finite epsilon{noise}"
    kind = "example_epsilon" if protection.kind == "examples" else "epsilon"
    text = f"{whose}: epsilon {protection.epsilon:.2f} {meaning(kind, protection.delta, protection.unit)}{noise}"
    return text if is_useful(protection.epsilon) else f"{text}; so large an epsilon protects little or nothing"
