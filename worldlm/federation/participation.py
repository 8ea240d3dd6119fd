"""Random draws of a round: participating children, lost uploads, and transfer times."""

import math
from collections.abc import Sequence
from random import Random

from worldlm.federation.noise_key import RandomStream
from worldlm.topology import Link, Node


def is_poisson(node: Node) -> bool:
    """Whether a federation draws each child independently; `auto` does if noise is added to a child's uploads."""
    if node.settings.sampling != "auto":
        return node.settings.sampling == "poisson"
    demands = [child.settings.privacy for child in node.children if not child.listens]
    return any(privacy is not None and privacy.noise_multiplier > 0 for privacy in demands)


def num_drawn(node: Node) -> int:
    """Return how many children a federation draws with `fixed` sampling; at least 1."""
    return max(1, round(node.settings.participation * sum(not child.listens for child in node.children)))


def draw_children(node: Node, able: Sequence[str], seed: int, stream: RandomStream | None = None) -> list[str]:
    """Draw the children that take part in one sub-round.

    Args:
        node: The federation's parent.
        able: Its children that may take part; all of them do if participation is 1.
        seed: Seed of the draw.
        stream: If nobody may predict the draw: source of Poisson sampling, in place of the seed.

    Returns:
        Names, sorted. With Poisson sampling (Mironov et al., arXiv 1908.10530) the list may be empty.
    """
    names = sorted(able)
    if node.settings.participation >= 1 or not names:
        return names
    random, rate = Random(seed), node.settings.participation
    if not is_poisson(node):
        return sorted(random.sample(names, min(num_drawn(node), len(names))))
    children = sorted(child.name for child in node.children if not child.listens)
    if stream is None:
        draws = [random.random() < rate for _ in children]
    else:
        draws = stream.bernoulli(len(children), rate).tolist()
    drawn = {name for name, is_drawn in zip(children, draws, strict=True) if is_drawn}
    return [name for name in names if name in drawn]


def is_dropped(dropout: float, seed: int) -> bool:
    """Draw whether an upload is lost before it is sent, with probability `dropout`."""
    return Random(seed).random() < dropout


def link_seconds(link: Link | None, num_bytes: int, seed: int) -> float:
    """Return the simulated seconds of a message on a link: the time without jitter, times exp(jitter * N(0, 1)).

    Args:
        link: The link; with None, a message takes no time.
        num_bytes: Size of the message.
        seed: Seed of the draw; the messages of a node in a sub-round share it, and so their factor.
    """
    if link is None:
        return 0.0
    return link.seconds(num_bytes) * math.exp(link.jitter * Random(seed).gauss(0.0, 1.0))
