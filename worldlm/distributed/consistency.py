"""Checks that all processes of a run, which may be on different machines, were started with the same settings."""

from __future__ import annotations

import hashlib
import logging
import socket
from collections.abc import Mapping, Sequence

from worldlm.topology import Topology
from worldlm.topology.checks import shorten
from worldlm.topology.errors import join_names

log = logging.getLogger(__name__)

_ADVICE = (
    "start all with the same recipe, topology, options, text and WorldLM; the run's folder must be on a file system "
    "that all machines see"
)


def this_process(rank: int) -> str:
    """Name a process by its number and its machine."""
    return f"process {rank} on {socket.gethostname()}"


def digest_of(topology: Topology) -> str:
    """Return a digest of the content of a topology, which does not depend on its file."""
    nodes = [
        (node.name, node.corpus, node.weight, node.settings, [child.name for child in node.children])
        for node in topology.nodes.values()
    ]
    return hashlib.sha256(repr(nodes).encode()).hexdigest()[:16]


def check_consistent(processes: Sequence[tuple[str, Mapping[str, str]]]) -> None:
    """Check that all processes were started with the same settings.

    Args:
        processes: The name of every process, and its settings by name.

    Raises:
        ValueError: If settings differ. It has one line for each process that differs from the first: the first such
            setting with both values, and the names of the others.
    """
    first, expected = processes[0]
    lines = []
    for name, settings in processes[1:]:
        keys = [key for key in {**expected, **settings} if settings.get(key) != expected.get(key)]
        if not keys:
            continue
        key = keys[0]
        values = f"{key} is {_shown(settings.get(key))} there and {_shown(expected.get(key))} at {first}"
        more = f"; {join_names(keys[1:])} differs too" if keys[1:] else ""
        lines.append(f"{name} was not started as {first} was: {values}{more}")
    if lines:
        raise ValueError("\n".join([*lines, _ADVICE]))


def warn_of_differences(processes: Sequence[tuple[str, Mapping[str, str]]]) -> None:
    """Warn of settings that may differ, but then change the last bits of the results.

    Args:
        processes: The name of every process, and its settings by name.
    """
    first, expected = processes[0]
    for key, value in expected.items():
        others = {name: settings.get(key) for name, settings in processes[1:] if settings.get(key) != value}
        if others:
            listed = join_names([f"{_shown(other)} at {name}" for name, other in others.items()], 3)
            log.warning("%s", f"{key}: {value} at {first}, {listed}; results may differ in their last bits")


def _shown(value: str | None) -> str:
    return "missing" if value is None else shorten(value)
