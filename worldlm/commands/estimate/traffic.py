"""Messages and bytes of one round on every edge: exact where nothing is left to chance, else their expectation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist, fmean

from worldlm.commands.estimate.messages import MessageSizes
from worldlm.federation.participation import is_poisson, num_drawn
from worldlm.topology import Node, Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTraffic:
    """What passes between a node and its parent in one round of the world."""

    downloads: float
    """Messages from its parent."""
    uploads: float
    """Messages to its parent."""
    bytes_down: float
    """Bytes from its parent, residuals left out."""
    bytes_up: float
    """Bytes to its parent, residuals left out."""
    residuals_up: float
    """Residuals that climb from it, at most."""
    fits: float
    """Fits of its own data."""


def expect_traffic(topology: Topology, sizes: MessageSizes) -> dict[str, NodeTraffic]:
    """Work out what every node, by name, sends and receives in one round of the world.

    Budgets of privacy that end a node's part are left out, and so are tokens that an upload of a federation may still
    have to tell from a sub-round it missed.

    Args:
        topology: The tree, with its draws of participants, dropouts and deadlines.
        sizes: The method's messages.
    """
    told: dict[str, float] = {}
    _chance_to_tell(topology.root, sizes, told)
    root = topology.root
    nothing = {"downloads": 0.0, "uploads": 0.0, "bytes_down": 0.0, "bytes_up": 0.0, "residuals_up": 0.0}
    found = {root.name: NodeTraffic(fits=float(root.settings.num_subrounds if root.fits else 0), **nothing)}
    _visit(root, float(root.settings.num_subrounds), sizes, told, found)
    return found


def _visit(
    node: Node, opened: float, sizes: MessageSizes, told: dict[str, float], found: dict[str, NodeTraffic]
) -> None:
    """Count for the children of a federation that holds so many sub-rounds in a round of the world."""
    share = _share(node)
    for child in node.children:
        downloads = opened * (1.0 if child.listens else share)
        uploads = 0.0 if child.listens else downloads * _chance_to_arrive(node, child, sizes, told[child.name])
        own = downloads * (child.settings.num_subrounds if child.children else 1)
        found[child.name] = NodeTraffic(
            downloads=downloads,
            uploads=uploads,
            bytes_down=downloads * sizes.download,
            bytes_up=uploads * sizes.upload(child.settings),
            residuals_up=downloads * _carried(child, sizes) if sizes.residual_up else 0.0,
            fits=own if child.fits else 0.0,
        )
        if child.children:
            _visit(child, own, sizes, told, found)


def _share(node: Node) -> float:
    """Return the probability that a federation draws one of its children."""
    if node.settings.participation >= 1:
        return 1.0
    number = sum(not child.listens for child in node.children)
    return node.settings.participation if is_poisson(node) or not number else num_drawn(node) / number


def _chance_to_tell(node: Node, sizes: MessageSizes, told: dict[str, float]) -> float:
    """Work out, for a node and all below it, the probability that it has trained on anything when it is to upload."""
    for child in node.children:
        _chance_to_tell(child, sizes, told)
    children = [child for child in node.children if not child.listens]
    if node.fits or not children:
        told[node.name] = 1.0
        return 1.0
    arrive = [_chance_to_arrive(node, child, sizes, told[child.name]) for child in children]
    if node.settings.participation < 1 and not is_poisson(node):
        nobody = (1 - fmean(arrive)) ** num_drawn(node)
    else:
        nobody = math.prod(1 - _share(node) * one for one in arrive)
    told[node.name] = 1 - nobody**node.settings.num_subrounds
    return told[node.name]


def _chance_to_arrive(parent: Node, child: Node, sizes: MessageSizes, told: float) -> float:
    """Return the probability that a drawn child's upload arrives."""
    return told * (1 - child.settings.dropout) * _chance_in_time(parent, child, sizes)


def _chance_in_time(parent: Node, child: Node, sizes: MessageSizes) -> float:
    deadline, link = parent.settings.deadline_seconds, child.settings.link
    if deadline is None or link is None:
        return 1.0
    seconds = link.seconds(sizes.download) + link.seconds(sizes.upload(child.settings))
    if link.jitter == 0 or seconds == 0:
        return float(seconds <= deadline)
    return NormalDist().cdf(math.log(deadline / seconds) / link.jitter)


def num_selected(node: Node, sizes: MessageSizes) -> int:
    """Return the residuals that a federation selects when it aggregates, at most."""
    sharing = [child for child in node.children if not child.listens and child.settings.residuals.share]
    return min(sizes.num_residuals, len(sharing)) if node.settings.residuals.share else 0


def _carried(node: Node, sizes: MessageSizes) -> int:
    """Return the residuals that one upload of a node carries, at most."""
    if not node.settings.residuals.share:
        return 0
    return num_selected(node, sizes) + sum(_carried(child, sizes) for child in node.children if not child.listens)
