"""Changes of the topology while a world trains: proposed at the root, consented to by all, and made at one round.

The root's operator proposes a topology. It descends from parent to child, and each organisation consents, or does not.
A consent climbs once all nodes below have consented too. When all have, the root makes the change before its next
round: it sends the new topology in place of the first download of that round. Each node passes it on, and begins again
from its last checkpoint with the new topology. So all nodes change it between the same two rounds.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Collection

from worldlm.organisations.proposal_files import Change, ProposalFiles, digest_of
from worldlm.topology import Topology
from worldlm.topology.changes import Changes, compare, described

log = logging.getLogger(__name__)

KINDS = ("joined", "left", "moved", "settings")
"""Kinds of changes that an operator can approve in advance."""


class TopologyChanged(Exception):
    """The topology was changed: the node must begin again from its last checkpoint."""


class Proposals:
    """What a node does with proposals while it trains.

    Args:
        files: Its folder.
        topology: The topology that is in use.
        node: Its name.
        parse: Makes a topology of YAML, with the settings and the shape of the recipe.
        approves: Kinds of changes that its operator consents to in advance, of `KINDS`.
        is_revoked: Returns whether a child may no longer connect: then its consent is not needed.
    """

    def __init__(
        self,
        files: ProposalFiles,
        topology: Topology,
        node: str,
        parse: Callable[[str], Topology],
        approves: Collection[str] = (),
        is_revoked: Callable[[str], bool] = lambda child: False,
    ) -> None:
        self.files = files
        self._topology = topology
        self._node = node
        self._parse = parse
        self._approves = frozenset(approves)
        self._is_revoked = is_revoked

    @property
    def _children(self) -> list[str]:
        return [child.name for child in self._topology.nodes[self._node].children]

    def take(self, text: str) -> None:
        """Store what the parent proposes; it is compared with the topology in use by `assess`."""
        if text and text != self.files.text:
            self.files.store(text)

    @property
    def proposed(self) -> str:
        """The proposal, if it can be used and the children are to be asked; else empty."""
        assessment = self.files.assessment
        return self.files.text if assessment["of"] and not assessment["problem"] else ""

    def assess(self) -> None:
        """Find out what a new proposal would change, log it, and consent if all of it is approved in advance."""
        text = self.files.text
        of = digest_of(text, json.dumps(described(self._topology), default=str))
        if not text or self.files.assessment["of"] == of:
            return
        changes, problem = self._changes(text)
        lines = [*changes.lines(), *(f"warning: {line}" for line in changes.warnings())]
        self.files.assess(of, lines, problem, self._children)
        if problem:
            log.warning("a proposed topology cannot be used: %s", problem)
            return
        for line in lines:
            log.info("proposed: %s", line)
        if self.is_approved(changes):
            self.files.consent(text)
        if self.files.has_consented(text):
            log.info("%s consents to the proposed topology", self._node)
        else:
            home = self.files.folder.parents[2]
            log.info("to consent to the proposed topology: worldlm organisations consent --home %s", home)

    def _changes(self, text: str) -> tuple[Changes, str]:
        """Return what a topology would change, and why it cannot be used; empty if it can."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                new = self._parse(text)
        except ValueError as error:
            return Changes(), str(error).splitlines()[0]
        if new.root.name != self._topology.root.name:
            return Changes(), f"its root is {new.root.name}, but the root cannot change while the world trains"
        changes = compare(described(self._topology), described(new))
        return changes, "" if changes else "it changes nothing"

    def is_approved(self, changes: Changes) -> bool:
        """Return whether changes are approved in advance.

        Changes of this node itself, and those that weaken privacy, always need the operator.
        """
        concerns = (changes.left, changes.moved, changes.settings)
        if any(self._node in changed for changed in concerns) or any(changes.warnings()):
            return False
        return all(kind in self._approves for kind in KINDS if getattr(changes, kind))

    def agreed(self) -> str:
        """Return the digest of the proposal if this node, and all nodes below it, have consented to it; else empty."""
        text, assessment = self.files.text, self.files.assessment
        if not text or not assessment["of"] or assessment["problem"] or not self.files.has_consented(text):
            return ""
        digest = digest_of(text)
        waits_for = [n for n in self._children if self.files.of_child(n) != digest and not self._is_revoked(n)]
        return "" if waits_for else digest

    def changed(self, round: int, text: str) -> tuple[Change, list[str], str]:
        """Return a change before a round, the children that are no longer children after it, and who goes on elsewhere.

        The last is a sentence for the operator if this node has no place in the new topology, or another parent; else
        it is empty.

        Raises:
            ValueError: If this node has not consented to it.
        """
        if not self.files.has_consented(text):
            raise ValueError(f"the topology changes before round {round + 1}, but {self._node} has not consented to it")
        new = self._parse(text)
        joined = list(compare(described(self._topology), described(new)).joined)
        remaining = {child.name for child in new.nodes[self._node].children} if self._node in new.nodes else set()
        gone = [name for name in self._children if name not in remaining]
        return Change(round=round, file=f"topology_{round}.yaml", joined=joined), gone, self._elsewhere(round, new)

    def _elsewhere(self, round: int, new: Topology) -> str:
        if self._node not in new.nodes:
            return f"{self._node} has left {new.name} after round {round}"
        old_parent, parent = self._topology.parent(self._node), new.parent(self._node)
        if parent is None or old_parent is None or parent.name == old_parent.name:
            return ""
        return (
            f"{self._node} belongs to {parent.name} after round {round}: when {parent.name} has admitted it, join "
            "again with the address of the new parent"
        )
