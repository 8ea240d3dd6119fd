"""Messages and bytes of one round on every edge: exact if nothing depends on chance, else their expectation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist, fmean

from worldlm.commands.estimate.message_sizes import MessageSizes
from worldlm.federation.participation import is_poisson, num_drawn
from worldlm.topology import Node, Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTraffic:
    """Traffic between a node and its parent in one round of the world."""

    downloads: float
    """Messages from the parent."""
    uploads: float
    """Messages to the parent."""
    bytes_down: float
    """Bytes from the parent, without residuals."""
    bytes_up: float
    """Bytes to the parent, without residuals."""
    residuals: float
    """Residuals to the parent, at most."""
    fits: float
    """Fits on its own data."""


def expect_traffic(topology: Topology, sizes: MessageSizes) -> dict[str, NodeTraffic]:
    """Compute the expected traffic of every node, by name, in one round of the world.

    Privacy budgets that run out are left out, and so are late tokens of sub-rounds that a federation missed.

    Args:
        topology: The tree, with participation, dropout and deadlines.
        sizes: Sizes of the method's messages.
    """
    chances: dict[str, float] = {}
    _chance_to_train(topology.root, sizes, chances)
    residuals = _uploaded_residuals(topology.root, sizes) if sizes.residual_up else {}
    root = topology.root
    nothing = {"downloads": 0.0, "uploads": 0.0, "bytes_down": 0.0, "bytes_up": 0.0, "residuals": 0.0}
    found = {root.name: NodeTraffic(fits=float(root.settings.num_subrounds if root.fits else 0), **nothing)}
    _visit(root, float(root.settings.num_subrounds), sizes, chances, residuals, found)
    return found


def _visit(
    node: Node,
    num_subrounds: float,
    sizes: MessageSizes,
    chances: Mapping[str, float],
    residuals: Mapping[str, int],
    found: dict[str, NodeTraffic],
) -> None:
    """Add the traffic below a federation that has a number of sub-rounds in a round of the world."""
    share = _share(node)
    for child in node.children:
        downloads = num_subrounds * (1.0 if child.listens else share)
        uploads = 0.0 if child.listens else downloads * _chance_to_arrive(node, child, sizes, chances[child.name])
        visits = downloads * (child.settings.num_subrounds if child.children else 1)
        found[child.name] = NodeTraffic(
            downloads=downloads,
            uploads=uploads,
            bytes_down=downloads * sizes.download,
            bytes_up=uploads * sizes.upload(child.settings),
            residuals=downloads * residuals.get(child.name, 0),
            fits=visits if child.fits else 0.0,
        )
        if child.children:
            _visit(child, visits, sizes, chances, residuals, found)


def _share(node: Node) -> float:
    """Return the probability that a federation draws one of its children."""
    if node.settings.participation >= 1:
        return 1.0
    number = sum(not child.listens for child in node.children)
    return node.settings.participation if is_poisson(node) or not number else num_drawn(node) / number


def _chance_to_train(node: Node, sizes: MessageSizes, chances: dict[str, float]) -> float:
    """Compute, for a node and all below it, the probability that any tokens were trained on before its upload."""
    for child in node.children:
        _chance_to_train(child, sizes, chances)
    children = [child for child in node.children if not child.listens]
    if node.fits or not children:
        chances[node.name] = 1.0
        return 1.0
    arrive = [_chance_to_arrive(node, child, sizes, chances[child.name]) for child in children]
    if node.settings.participation < 1 and not is_poisson(node):
        none_arrive = (1 - fmean(arrive)) ** num_drawn(node)
    else:
        none_arrive = math.prod(1 - _share(node) * chance for chance in arrive)
    chances[node.name] = 1 - none_arrive**node.settings.num_subrounds
    return chances[node.name]


def _chance_to_arrive(parent: Node, child: Node, sizes: MessageSizes, trained: float) -> float:
    """Return the probability that a drawn child's upload arrives."""
    return trained * (1 - child.settings.dropout) * _chance_in_time(parent, child, sizes)


def _chance_in_time(parent: Node, child: Node, sizes: MessageSizes) -> float:
    deadline, link = parent.settings.deadline_seconds, child.settings.link
    if deadline is None or link is None:
        return 1.0
    seconds = link.seconds(sizes.download) + link.seconds(sizes.upload(child.settings))
    if link.jitter == 0 or seconds == 0:
        return float(seconds <= deadline)
    return NormalDist().cdf(math.log(deadline / seconds) / link.jitter)


def _uploaded_residuals(root: Node, sizes: MessageSizes) -> dict[str, int]:
    """Return node -> the largest number of residuals in one upload of it, and of answers in one download."""
    found: dict[str, int] = {}
    for node in reversed(list(root.walk())):  # children first
        children = [child for child in node.children if not child.listens]
        candidates = sum(found[child.name] for child in children)
        if len(children) + node.fits > 1:
            candidates += sum(child.settings.residuals.share for child in children)
        found[node.name] = min(sizes.num_residuals, candidates) if node.settings.residuals.share else 0
    return found
