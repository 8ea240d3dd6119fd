"""One round of the world as a flat list of steps.

A tree of any depth becomes one list, in the order of a depth-first walk, so that the place where a round
stands is one number: that is all a checkpoint has to keep of it.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from worldlm.topology import Node, Topology

StepKind: TypeAlias = Literal["open", "receive", "fit", "upload", "aggregate"]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens at one node."""

    kind: StepKind
    """open: a parent chooses participants and fixes what it sends; receive: a child merges what it was sent;
    fit: a node trains; upload: a child sends; aggregate: a parent merges its participants."""
    node: str
    subround: int
    """Counts, from 0 and over the whole round, the sub-rounds of the node's own federation (open, fit of a
    parent, aggregate) or of its parent's (receive, fit of a leaf, upload): with kind and node it names a step
    for good."""


def compile_round(topology: Topology) -> tuple[Step, ...]:
    """Write one round of the world down as a flat program."""
    return tuple(_federation(topology.root, 0))


def _federation(node: Node, outer: int) -> list[Step]:
    """Compile a node's own federation; `outer` counts the visits of the node earlier in this round.

    Listeners receive first, before anybody trains; they need no waiting for. Where all children listen, there is
    nothing to aggregate: the node trains as if it were alone.
    """
    steps = []
    for subround in range(outer * node.settings.num_subrounds, (outer + 1) * node.settings.num_subrounds):
        steps.append(Step("open", node.name, subround))
        for child in (child for child in node.children if child.listens):
            steps.append(Step("receive", child.name, subround))
            steps.extend(_federation(child, subround) if child.children else [])
        if node.fits:
            steps.append(Step("fit", node.name, subround))
        participants = [child for child in node.children if not child.listens]
        for child in participants:
            steps.append(Step("receive", child.name, subround))
            steps.extend(_federation(child, subround) if child.children else [Step("fit", child.name, subround)])
            steps.append(Step("upload", child.name, subround))
        if participants:
            steps.append(Step("aggregate", node.name, subround))
    return steps


def num_visits(topology: Topology) -> dict[str, int]:
    """Count the fits of every data node in one round of the world, all nodes participating; 0 for a listener."""
    visits = dict.fromkeys((node.name for node in topology.data_nodes), 0)
    for step in compile_round(topology):
        if step.kind == "fit":
            visits[step.node] += 1
    return visits


def fit_order(topology: Topology) -> list[str]:
    """Return the nodes that train in one round of the world, all nodes participating, in their order."""
    return [step.node for step in compile_round(topology) if step.kind == "fit"]
