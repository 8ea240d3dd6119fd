"""Warnings about settings that have no effect, or probably not the intended one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

import yaml

from worldlm.topology.checks import shorten
from worldlm.topology.compose import line_of
from worldlm.topology.errors import suggest
from worldlm.topology.reader import Reader
from worldlm.topology.settings import KINDS_OF_PRIVACY
from worldlm.topology.tree import Topology

MAX_WARNINGS = 20
"""Of one kind; a last line counts the others."""
_PLACEHOLDER = re.compile(r"\$\{[^{}]*\}|^\$[A-Z_][A-Z0-9_]*(?=/|$)")
"""`${oc.env:HOME}` of OmegaConf, `${HOME}` and `$HOME/` of a shell."""


def warnings(topology: Topology) -> Iterator[str]:
    """Yield one warning per setting that has no effect, or an unintended one, in this tree."""
    yield from _unknown_jurisdictions(topology)
    yield from _unprotected_corpora(topology)
    federations = [node for node in topology.nodes.values() if node.children]
    sampling = [node for node in federations if node.settings.sampling != "auto"]
    if sampling and all(node.settings.participation >= 1 for node in sampling):
        yield f"{sampling[0].source}: sampling has no effect where participation is 1, as at {sampling[0].name!r}"
    timed = [node for node in federations if node.settings.deadline_seconds is not None]
    if timed and all(child.settings.link is None for node in timed for child in node.children):
        no_effect = f"deadline_seconds has no effect at {timed[0].name!r} in a simulation"
        yield f"{timed[0].source}: {no_effect}: none of its children has a link, so transfers take no time"


def placeholders(reader: Reader) -> Iterator[str]:
    """Yield one warning per text in a document that other programs would replace, such as `${oc.env:HOME}`.

    Args:
        reader: A topology or a recipe.
    """
    found = (
        (line_of(node), match.group()) for node in _scalars(reader.root) if (match := _PLACEHOLDER.search(node.value))
    )
    unique = iter(dict.fromkeys(found))
    for line, text in islice(unique, MAX_WARNINGS):
        yield f"{reader.source}:{line}: {shorten(text)} is taken as it is: nothing replaces it, so write the value"
    if left := sum(1 for _ in unique):
        yield f"{reader.source}: {left} more texts are taken as they are"


def _scalars(root: yaml.Node) -> Iterator[yaml.ScalarNode]:
    """Yield all keys and values, each node once, also where aliases repeat it."""
    waiting, seen = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            yield node
        elif isinstance(node, yaml.MappingNode):
            waiting += [part for pair in reversed(node.value) for part in reversed(pair)]
        elif isinstance(node, yaml.SequenceNode):
            waiting += reversed(node.value)


def _unprotected_corpora(topology: Topology) -> Iterator[str]:
    """Warn of each corpus that some node reads with a kind of privacy and another node without it."""
    readers = [node for node in topology.data_nodes if node.fits]
    for kind in KINDS_OF_PRIVACY:
        private = {str(node.corpus): node for node in readers if getattr(node.settings, kind) is not None}
        warned = set[str]()
        for node in (node for node in readers if getattr(node.settings, kind) is None):
            corpus = str(node.corpus)
            if corpus in private and corpus not in warned:
                warned.add(corpus)
                unprotected = f"{kind} of {private[corpus].name!r} does not protect its corpus"
                yield f"{node.source}: {unprotected}: {node.name!r} reads {corpus!r} too, without {kind}"


def _unknown_jurisdictions(topology: Topology) -> Iterator[str]:
    unknown = _accepts_from_unknown(topology)
    yield from islice(unknown, MAX_WARNINGS)
    if left := sum(1 for _ in unknown):
        yield f"accept_from names {left} more jurisdictions that no node has"


def _accepts_from_unknown(topology: Topology) -> Iterator[str]:
    known = {node.settings.jurisdiction or "" for node in topology.nodes.values()} - {""}
    warned = set[tuple[str, str]]()  # copies share a source and get one warning
    for node in topology.nodes.values():
        residuals, parent = node.settings.residuals, topology.parent(node.name)
        if parent is not None and parent.settings.residuals == residuals:
            continue
        for name in residuals.accept_from or ():
            if name not in known and (node.source, name) not in warned:
                warned.add((node.source, name))
                near = suggest(name, known) if len(warned) <= MAX_WARNINGS else ""  # a search of all names is slow
                accepts = f"node {node.name!r} accepts residuals from {name!r}"
                yield f"{node.source}: {accepts}, but no node has that jurisdiction{near}"
