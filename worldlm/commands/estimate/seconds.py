"""How long a round takes: on the links, in the fits, and along the longest way through the tree."""

from __future__ import annotations

from collections.abc import Callable

from worldlm.commands.estimate.messages import MessageSizes
from worldlm.topology import Node, Topology

FitSeconds = Callable[[Node], float]
"""Returns the seconds of one fit of a node that fits."""


def longest_way(topology: Topology, sizes: MessageSizes, fit_seconds: FitSeconds) -> float:
    """Return the seconds of one round of the world if every node has a machine of its own.

    Children of one federation work side by side, and so does a federation's own fit; sub-rounds follow one another, and
    so do the levels. All children are waited for, but none beyond its federation's deadline. Jitter is left out.

    Args:
        topology: The tree and its links.
        sizes: The method's messages; residuals are left out.
        fit_seconds: Seconds of one fit; always 0 to learn the time on the links alone.
    """
    return _visit(topology.root, sizes, fit_seconds)


def _visit(node: Node, sizes: MessageSizes, fit_seconds: FitSeconds) -> float:
    fit = fit_seconds(node) if node.fits else 0.0
    if not node.children:
        return fit
    children = (_with_links(node, child, sizes, fit_seconds) for child in node.children)
    return node.settings.num_subrounds * max(fit, *children)


def _with_links(parent: Node, child: Node, sizes: MessageSizes, fit_seconds: FitSeconds) -> float:
    return link_seconds(parent, child, sizes) + _visit(child, sizes, fit_seconds)


def link_seconds(parent: Node, child: Node, sizes: MessageSizes) -> float:
    """Return the seconds of a child's download and upload of one sub-round, or the deadline if that is less."""
    link, deadline = child.settings.link, parent.settings.deadline_seconds
    if link is None:
        return 0.0
    up = 0.0 if child.listens else link.seconds(sizes.upload(child.settings))
    both = link.seconds(sizes.download) + up
    return both if deadline is None else min(both, deadline)
