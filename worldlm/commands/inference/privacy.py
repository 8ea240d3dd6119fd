"""What protects the text of a world's data nodes from whoever holds one node's model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from worldlm.topology import Node, Topology


@dataclass(frozen=True, kw_only=True, slots=True)
class Protection:
    """One guarantee that holds for a text in a model."""

    kind: Literal["examples", "updates"]
    """`examples`: of every document's block, by DP-SGD. `updates`: of all that a node and those below it sent."""
    node: str
    """Whose ledger it is."""
    epsilon: float | None
    """What was spent; None: no finite epsilon holds."""
    delta: float | None
    """The delta of this epsilon; None where the topology's settings are not known."""
    noise_multiplier: float | None
    """Noise over the clipping norm; None where it is not known."""


def protections(
    topology: Topology, source: Node, holder: str, figures: Mapping[str, Mapping[str, Any]]
) -> list[Protection]:
    """Return what protects a data node's text in the model that another node, or it itself, holds.

    Steps with noise protect a text in whatever comes of them. Noise on updates protects it beyond the edge where it
    was added only: a node's own weights, and those of a federation below that edge, are not covered.

    Args:
        topology: The tree.
        source: The node whose text it is.
        holder: The node whose model it is.
        figures: What a round came to, by node: `epsilon` and `example_epsilon` where there are any.
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
    asked = node.settings.example_privacy if kind == "examples" else node.settings.privacy
    return Protection(
        kind=kind,
        node=node.name,
        epsilon=epsilon,
        delta=None if asked is None else asked.delta,
        noise_multiplier=None if asked is None else asked.noise_multiplier,
    )


def told(protection: Protection) -> str:
    """Say a guarantee in words."""
    whose = "its training steps" if protection.kind == "examples" else f"the updates of `{protection.node}`"
    noise = "" if protection.noise_multiplier is None else f", noise multiplier {protection.noise_multiplier:g}"
    if protection.epsilon is None:
        return f"{whose}: no finite epsilon{noise}"
    delta = "" if protection.delta is None else f" at delta {protection.delta:g}"
    return f"{whose}: epsilon {protection.epsilon:.2f}{delta}{noise}"
