"""The states of nodes after the topology changes between two rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from worldlm.federation.parameters import clone
from worldlm.federation.state import NodeState
from worldlm.topology import Topology
from worldlm.topology.changes import Changes


def carry_over(
    states: Mapping[str, NodeState],
    changes: Changes,
    topology: Topology,
    is_local: Callable[[str], bool] = lambda name: True,
) -> dict[str, NodeState]:
    """Return the states of the nodes of a changed topology.

    A node that stayed keeps its state, except for entries about nodes that are no longer its parent or children. A node
    that joined gets a copy of all weights (B, K and V) of the node that it starts from, and nothing else.

    Args:
        states: The states of the old nodes at the end of a round; those of nodes that stay are changed in place.
        changes: The changes of the topology.
        topology: The new topology.
        is_local: Whether this process needs the tensors of a node; a joined node without them gets no weights.
    """
    carried = {}
    for name in topology.nodes:
        if name in states:
            carried[name] = states[name]
        else:
            source = states[changes.joined[name]].parameters
            carried[name] = NodeState(parameters=clone(source) if is_local(name) else {})
    for child, parent in changes.parted:
        _remove_child(carried[parent], child)
    for name in changes.moved:
        carried[name].unsent_tokens = 0  # they were not sent to the old parent, and are not reported to the new one
        carried[name].download = None
    for name in changes.new_texts:
        carried[name].num_batches = 0
    carried[topology.root.name].takes_part = True
    return carried


def _remove_child(parent: NodeState, child: str) -> None:
    """Remove the entries about a child from the state of its former parent."""
    parent.participants = tuple(name for name in parent.participants if name != child)
    parent.uploads = {name: upload for name, upload in parent.uploads.items() if name != child}
    parent.refused = {name: number for name, number in parent.refused.items() if name != child}
    parent.attention = {
        receiver: {name: weight for name, weight in weights.items() if name != child}
        for receiver, weights in parent.attention.items()
        if receiver != child
    }
