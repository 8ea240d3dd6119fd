"""How large the noise of update-level privacy is beside the updates that it hides, known before anything is trained.

An update of d coordinates has at most the norm C (`clip_norm`). Its noise of standard deviation z C (`noise_multiplier`
z) in each coordinate has the expected norm z C sqrt(d). So the noise is at least z sqrt(d) times as large, whatever C.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from worldlm.topology.errors import join_names
from worldlm.topology.settings import KINDS_OF_PRIVACY
from worldlm.topology.tree import Node, Topology

ASSUMED_PARAMETERS = 1_000_000
"""Parameters in an upload, where the model is unknown."""

_MAX_LINES = 3
_MAX_NAMES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyUploads:
    """Nodes with the same noise, whose federations average too few of such uploads to see more than noise."""

    nodes: tuple[str, ...]
    noise_multiplier: float
    ratio: float
    """Expected norm of the noise in one upload, divided by the largest norm of its update: z sqrt(d)."""
    num_peers: float
    """Participants of a sub-round with this noise or less, as expected, in the federation that has most of them."""

    @property
    def share(self) -> float:
        """Weight of such an upload beside one without noise, if the other's update has the norm C: 1 / (1 + z^2 d).

        See `worldlm.federation.noise_weights`.
        """
        return 1 / (1 + self.num_needed)

    @property
    def num_needed(self) -> float:
        """Participants whose mean has an expected noise no larger than an update: z sqrt(d / n) = 1, so n = z^2 d."""
        return self.ratio**2


def find_noisy_uploads(topology: Topology, num_sent: int) -> list[NoisyUploads]:
    """Return the private nodes from which their federation will receive little but noise, most noise first.

    A node is among them if the mean over its federation's participants with as much noise or less still has a larger
    noise than update: z sqrt(d / n) > 1. Participants without noise do not make its upload more useful.

    Args:
        topology: The tree. Only `privacy` of nodes that upload is considered.
        num_sent: Coordinates d of an upload.
    """
    found: dict[float, list[str]] = {}
    most_peers: dict[float, float] = {}
    for federation in topology.root.walk():
        levels = {child.name: _noise_multiplier(child) for child in federation.children}
        counts, num_peers = Counter(level for level in levels.values() if level), 0.0
        drowned: dict[float, float] = {}
        for level in sorted(counts):
            num_peers += counts[level] * federation.settings.participation
            if level**2 * num_sent > num_peers:
                drowned[level] = num_peers
        for name, level in levels.items():
            if level in drowned:
                found.setdefault(level, []).append(name)
                most_peers[level] = max(most_peers.get(level, 0.0), drowned[level])
    return [
        NoisyUploads(
            nodes=tuple(found[level]),
            noise_multiplier=level,
            ratio=level * math.sqrt(num_sent),
            num_peers=most_peers[level],
        )
        for level in sorted(found, reverse=True)
    ]


def noise_warnings(topology: Topology, num_sent: int | None = None) -> Iterator[str]:
    """Yield a few lines on what to expect of private uploads, and what would help; none if their noise is small.

    Args:
        topology: The tree.
        num_sent: Parameters in an upload; None if the model is unknown, for which a million are assumed.
    """
    for kind in KINDS_OF_PRIVACY:
        settings = {node.name: getattr(node.settings, kind) for node in topology.nodes.values()}
        clipped = [name for name, setting in settings.items() if setting is not None and not setting.noise_multiplier]
        if clipped:
            names = join_names(clipped, _MAX_NAMES)
            yield f"{kind} of {names} guarantees nothing: its noise_multiplier is 0, which only clips"
    number = ASSUMED_PARAMETERS if num_sent is None else num_sent
    shared = f"{'such as ' if num_sent is None else ''}{number:,} shared parameters"
    found = find_noisy_uploads(topology, number)
    for noisy in found[:_MAX_LINES]:
        yield (
            f"the privacy noise of {join_names(noisy.nodes, _MAX_NAMES)} is at least {_about(noisy.ratio)} times as "
            f"large as the update: noise_multiplier {noisy.noise_multiplier:g}, {shared}"
        )
        yield (
            f"  averaging and attention count each upload as {_share(noisy.share)} of one without noise; about "
            f"{_about(noisy.num_needed)} such participants in one federation would balance the noise, and "
            f"here are at most {_about(noisy.num_peers)}"
        )
    if left := [name for noisy in found[_MAX_LINES:] for name in noisy.nodes]:
        yield f"the privacy noise of {join_names(left, _MAX_NAMES)} is larger than the update too"
    if found:
        yield (
            "  what helps: more private participants in a federation, fewer shared parameters, or a smaller "
            "noise_multiplier (fewer rounds then keep epsilon low); a larger clip_norm only adds noise"
        )
        if num_sent is None:
            yield "  `worldlm topology estimate RECIPE` says this for the parameters that a recipe shares"


def _noise_multiplier(node: Node) -> float:
    """Return the noise multiplier of a node's uploads; 0 if it sends none or adds no noise."""
    privacy = node.settings.privacy
    return 0.0 if privacy is None or node.listens else privacy.noise_multiplier


def _share(share: float) -> str:
    return f"{100 * share:.2g} %" if share >= 0.01 else f"1/{_about(1 / share)}"


def _about(number: float) -> str:
    """Format a positive number with three digits, without an exponent."""
    digits = 2 - math.floor(math.log10(number))
    return f"{round(number, digits):,.0f}" if digits <= 0 else f"{number:.3g}"
