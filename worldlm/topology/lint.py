"""Warnings about settings of a topology that have no effect, or hardly the intended one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from worldlm.topology.errors import suggest
from worldlm.topology.settings import KINDS_OF_PRIVACY
from worldlm.topology.tree import Topology

MAX_WARNINGS = 20
"""Of one kind; how many more there are is told too."""


def warnings(topology: Topology) -> Iterator[str]:
    """Yield a warning, a line each, for every setting that has no effect in this tree."""
    yield from _unknown_jurisdictions(topology)
    yield from _read_openly_too(topology)
    federations = [node for node in topology.nodes.values() if node.children]
    drawing = [node for node in federations if node.settings.sampling != "auto"]
    if drawing and all(node.settings.participation >= 1 for node in drawing):
        yield f"{drawing[0].source}: sampling has no effect where participation is 1, as at {drawing[0].name!r}"
    hurried = [node for node in federations if node.settings.deadline_seconds is not None]
    if hurried and all(child.settings.link is None for node in hurried for child in node.children):
        told = f"deadline_seconds has no effect at {hurried[0].name!r}"
        yield f"{hurried[0].source}: {told}: none of its children has a link, which would take time"


def _read_openly_too(topology: Topology) -> Iterator[str]:
    """Find texts that one node reads under a kind of privacy, and another without it."""
    readers = [node for node in topology.data_nodes if node.fits]
    for kind in KINDS_OF_PRIVACY:
        private = {str(node.corpus): node for node in readers if getattr(node.settings, kind) is not None}
        told_of = set[str]()
        for node in (node for node in readers if getattr(node.settings, kind) is None):
            corpus = str(node.corpus)
            if corpus in private and corpus not in told_of:
                told_of.add(corpus)
                told = f"{kind} of {private[corpus].name!r} does not protect its text: {node.name!r} reads {corpus!r}"
                yield f"{node.source}: {told} too, without it"


def _unknown_jurisdictions(topology: Topology) -> Iterator[str]:
    found = _not_known(topology)
    yield from islice(found, MAX_WARNINGS)
    if left := sum(1 for _ in found):
        yield f"accept_from has {left} more jurisdictions that no node has"


def _not_known(topology: Topology) -> Iterator[str]:
    known = {node.settings.jurisdiction or "" for node in topology.nodes.values()} - {""}
    told_of = set[tuple[str, str]]()  # copies have one source
    for node in topology.nodes.values():
        residuals, parent = node.settings.residuals, topology.parent(node.name)
        if parent is not None and parent.settings.residuals == residuals:
            continue
        for name in residuals.accept_from or ():
            if name not in known and (node.source, name) not in told_of:
                told_of.add((node.source, name))
                near = suggest(name, known) if len(told_of) <= MAX_WARNINGS else ""  # a search through all there are
                told = f"{node.source}: node {node.name!r} accepts residuals from {name!r}, "
                yield f"{told}which is the jurisdiction of no node{near}"
