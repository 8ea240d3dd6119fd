"""Chance in a round: which children are drawn, what does not arrive, how long a line takes."""

import math
from collections.abc import Sequence
from random import Random

from worldlm.topology import Link, Node


def is_poisson(node: Node) -> bool:
    """Whether a federation draws each of its children by itself; `auto` does where a child's uploads are noised."""
    if node.settings.sampling != "auto":
        return node.settings.sampling == "poisson"
    demands = [child.settings.privacy for child in node.children if not child.listens]
    return any(privacy is not None and privacy.noise_multiplier > 0 for privacy in demands)


def num_drawn(node: Node) -> int:
    """Return how many children a federation draws where it does not draw by Poisson; at least 1."""
    return max(1, round(node.settings.participation * sum(not child.listens for child in node.children)))


def draw_children(node: Node, able: Sequence[str], seed: int) -> list[str]:
    """Draw the children that take part in one sub-round.

    Args:
        node: The federation's parent.
        able: Its children that may take part; all of them do where participation is 1.
        seed: Seed of the draw.

    Returns:
        Names, sorted. By Poisson sampling (Mironov et al., arXiv 1908.10530) there may be none.
    """
    names = sorted(able)
    if node.settings.participation >= 1 or not names:
        return names
    random = Random(seed)
    if not is_poisson(node):
        return sorted(random.sample(names, min(num_drawn(node), len(names))))
    children = sorted(child.name for child in node.children if not child.listens)
    drawn = {name for name in children if random.random() < node.settings.participation}
    return [name for name in names if name in drawn]


def is_dropped(dropout: float, seed: int) -> bool:
    """Draw whether an upload is lost before it leaves its node, with probability `dropout`."""
    return Random(seed).random() < dropout


def link_seconds(link: Link | None, num_bytes: int, seed: int) -> float:
    """Return the simulated seconds of a message on a link: as on a steady line, times exp(jitter * N(0, 1)).

    Args:
        link: The line; None takes no time.
        num_bytes: Size of the message.
        seed: Seed of the draw; messages of one node in one sub-round share it, and how fast the line then is.
    """
    if link is None:
        return 0.0
    return link.seconds(num_bytes) * math.exp(link.jitter * Random(seed).gauss(0.0, 1.0))
