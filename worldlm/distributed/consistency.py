"""Whether the processes of a run, on machines of their own, were started for the same run."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Mapping, Sequence

from worldlm.topology import Topology
from worldlm.topology.checks import shorten
from worldlm.topology.errors import join_names

_ADVICE = (
    "start all with the same recipe, topology, options, text and WorldLM; the run's folder must be on a file system "
    "that all machines see"
)


def this_process(rank: int) -> str:
    """Name a process by its number and its machine."""
    return f"process {rank} on {socket.gethostname()}"


def digest_of(topology: Topology) -> str:
    """Return a digest of all that a topology says, wherever it was written."""
    nodes = [
        (node.name, node.corpus, node.weight, node.settings, [child.name for child in node.children])
        for node in topology.nodes.values()
    ]
    return hashlib.sha256(repr(nodes).encode()).hexdigest()[:16]


def check_consistent(told: Sequence[tuple[str, Mapping[str, str]]]) -> None:
    """Check that all processes were started with the same settings.

    Args:
        told: Of every process its name, and what must be the same everywhere, by name.

    Raises:
        ValueError: Names, for each process that differs from the first, what does, and how.
    """
    first, expected = told[0]
    lines = []
    for name, found in told[1:]:
        keys = [key for key in {**expected, **found} if found.get(key) != expected.get(key)]
        if not keys:
            continue
        key = keys[0]
        both = f"{key} is {_shown(found.get(key))} there and {_shown(expected.get(key))} at {first}"
        more = f"; {join_names(keys[1:])} differs too" if keys[1:] else ""
        lines.append(f"{name} was not started as {first} was: {both}{more}")
    if lines:
        raise ValueError("\n".join([*lines, _ADVICE]))


def _shown(value: str | None) -> str:
    return "missing" if value is None else shorten(value)
