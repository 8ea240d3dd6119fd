"""The time of a round: on the links, in the fits, and along the critical path through the tree."""

from __future__ import annotations

from collections.abc import Callable

from worldlm.commands.estimate.message_sizes import MessageSizes
from worldlm.topology import Node, Topology

FitSeconds = Callable[[Node], float]
"""Returns the seconds of one fit of a node."""


def critical_path(topology: Topology, sizes: MessageSizes, fit_seconds: FitSeconds) -> float:
    """Return the seconds of one round of the world if every node has a machine of its own.

    The children of a federation and its own fit run in parallel. Sub-rounds and levels follow one another. A federation
    waits for all its children, but not longer than its deadline. Jitter is left out.

    Args:
        topology: The tree and its links.
        sizes: Sizes of the method's messages, without residuals.
        fit_seconds: Seconds of one fit; 0 for the time on the links alone.
    """
    return _node_seconds(topology.root, sizes, fit_seconds)


def _node_seconds(node: Node, sizes: MessageSizes, fit_seconds: FitSeconds) -> float:
    fit = fit_seconds(node) if node.fits else 0.0
    if not node.children:
        return fit
    children = (_child_seconds(node, child, sizes, fit_seconds) for child in node.children)
    return node.settings.num_subrounds * max(fit, *children)


def _child_seconds(parent: Node, child: Node, sizes: MessageSizes, fit_seconds: FitSeconds) -> float:
    return link_seconds(parent, child, sizes) + _node_seconds(child, sizes, fit_seconds)


def link_seconds(parent: Node, child: Node, sizes: MessageSizes) -> float:
    """Return the seconds of a child's download and upload of one sub-round, or the deadline if that is less."""
    link, deadline = child.settings.link, parent.settings.deadline_seconds
    if link is None:
        return 0.0
    up = 0.0 if child.listens else link.seconds(sizes.upload(child.settings))
    seconds = link.seconds(sizes.download) + up
    return seconds if deadline is None else min(seconds, deadline)
