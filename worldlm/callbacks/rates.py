"""How far a node follows its parent."""

from __future__ import annotations

from worldlm.federation.schedule import Rate, in_round
from worldlm.rounds import Context


def download_rate(context: Context, federation: Rate, leaf: Rate, own_share: float = 1.0) -> float:
    """Return how far a node moves towards its download in this round.

    A listener has nothing of its own, and a node that receives its first download has the weights of an earlier round:
    both copy their parent. So does a federation to the extent that its own weights are noise.

    Args:
        context: The node.
        federation: The rate of a federation.
        leaf: The rate of a leaf.
        own_share: How much of the node's own weights is learnt, from 0 to 1; see `worldlm.callbacks.noise.own_share`.
    """
    if context.node.listens or context.state.num_messages <= 1:
        return 1.0
    rate = in_round(leaf if context.node.is_leaf else federation, context.round, context.num_rounds)
    return rate if own_share == 1.0 else 1.0 - own_share * (1.0 - rate)
