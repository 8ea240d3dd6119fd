"""What the nodes of a world carry over when its tree changes between two rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from worldlm.federation.parameters import clone
from worldlm.federation.residuals import is_allowed_at
from worldlm.federation.state import NodeState
from worldlm.topology import Topology
from worldlm.topology.changes import Changes


def carry_over(
    states: Mapping[str, NodeState],
    changes: Changes,
    topology: Topology,
    here: Callable[[str], bool] = lambda name: True,
) -> dict[str, NodeState]:
    """Return the nodes of a changed tree.

    A node that stayed is as it was, but for what it had with nodes it has nothing to do with any more. A node that
    joined has the weights of the node it starts from, all three parts of them, and nothing else.

    Args:
        states: The nodes of the old tree, as they stood at the end of a round; those that stay are changed in place.
        changes: What became of them.
        topology: The new tree.
        here: Whether a node's tensors are wanted; the weights of others that joined are left out.
    """
    carried = {}
    for name in topology.nodes:
        if name in states:
            carried[name] = states[name]
        else:
            source = states[changes.joined[name]].parameters
            carried[name] = NodeState(parameters=clone(source) if here(name) else {})
    for child, parent in changes.parted:
        _part(carried[parent], child)
    for name in changes.moved:
        carried[name].unsent_tokens = 0  # which its old parent never heard of; its new one hears of the next
        carried[name].download = None
    for name in changes.new_texts:
        carried[name].num_batches = 0
    for name, state in carried.items():
        state.inbox = [one for one in state.inbox if is_allowed_at(one, topology.nodes[name], topology)]
    carried[topology.root.name].takes_part = True
    return carried


def _part(parent: NodeState, child: str) -> None:
    """Forget a child."""
    parent.participants = tuple(name for name in parent.participants if name != child)
    parent.uploads = {name: upload for name, upload in parent.uploads.items() if name != child}
    parent.refused = {name: number for name, number in parent.refused.items() if name != child}
    parent.attention = {name: weight for name, weight in parent.attention.items() if name != child}
