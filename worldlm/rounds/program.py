"""One round of the world as a flat list of steps.

A tree of any depth becomes one list, in depth-first order. The progress of a round is therefore one number, the
position in this list, and a checkpoint only has to save this number.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from worldlm.topology import Node, Topology

StepKind: TypeAlias = Literal["open", "receive", "fit", "upload", "aggregate"]


@dataclass(frozen=True, slots=True)
class Step:
    """One action of one node."""

    kind: StepKind
    """open: a parent draws participants and fixes what it sends; receive: a child merges its download;
    fit: a node trains; upload: a child sends its upload; aggregate: a parent merges the uploads."""
    node: str
    subround: int
    """The sub-round, counted from 0 over the whole round: of the node's own federation (open, fit of a parent,
    aggregate) or of its parent's (receive, fit of a leaf, upload). Kind, node and sub-round identify a step."""


def compile_round(topology: Topology) -> tuple[Step, ...]:
    """Compile one round of the world into a flat program."""
    return tuple(_federation(topology.root, 0))


def _federation(node: Node, outer: int) -> list[Step]:
    """Compile a node's own federation; `outer` counts the visits of the node earlier in this round.

    Listeners receive first, before any node trains, because no node waits for them. If all children are listeners,
    there is nothing to aggregate: the node trains as if it were alone.
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
    """Count the fits of every data node in one round, if all nodes participate; 0 for a listener."""
    visits = dict.fromkeys((node.name for node in topology.data_nodes), 0)
    for step in compile_round(topology):
        if step.kind == "fit":
            visits[step.node] += 1
    return visits


def fit_order(topology: Topology) -> list[str]:
    """Return the names of the nodes that train in one round, in their order, if all nodes participate."""
    return [step.node for step in compile_round(topology) if step.kind == "fit"]
