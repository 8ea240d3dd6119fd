"""The node that an organisation runs, and how its messages leave and arrive."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.exceptions import SIGTERMException

from worldlm.organisations.check_message import why_invalid
from worldlm.organisations.mailbox import Mailbox, read_message
from worldlm.rounds.transport import MessageKey, Transport
from worldlm.topology import Topology
from worldlm.topology.errors import join_names, suggest

_SECONDS_BETWEEN_LOOKS = 0.02
_SECONDS_BEFORE_REPORT = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Organisation:
    """One node of a world, run by the organisation that owns it, and the mailboxes of its neighbours."""

    node: str
    """Name of the node."""
    mailboxes: Mapping[str, Mailbox]
    """A mailbox for the parent under the node's own name, and one for each child under the child's name."""

    seed: int | None = None
    """The secret of all random draws of the node; None uses the seed of the run, which others know."""

    def check(self, topology: Topology) -> None:
        """Check that the node is in a topology, and that all its neighbours have a mailbox.

        Raises:
            ValueError: If the node is unknown, or a mailbox is missing or superfluous.
        """
        if self.node not in topology.nodes:
            names = list(topology.nodes)
            raise ValueError(
                f"{topology.name} has no node {self.node!r}; it has {join_names(names, 20)}{suggest(self.node, names)}"
            )
        node = topology.nodes[self.node]
        edges = {child.name for child in node.children} | ({node.name} if topology.parent(node.name) else set())
        if edges != self.mailboxes.keys():
            raise ValueError(
                f"the mailboxes of {self.node} must be for {join_names(sorted(edges)) or 'nobody'}, got "
                f"{join_names(sorted(self.mailboxes)) or 'none'}"
            )

    def forget(self, num_rounds: int) -> None:
        """Delete the messages of finished rounds, whose effect is in a checkpoint."""
        for mailbox in self.mailboxes.values():
            mailbox.forget(num_rounds)

    def transport(self, topology: Topology, stopped: Callable[[], bool]) -> Transport:
        """Return what exchanges messages with the neighbours.

        Args:
            topology: The world.
            stopped: Returns whether the run is to stop; the node then stops waiting for messages.
        """
        return MailboxTransport(self, topology, stopped)


class MailboxTransport(Transport):
    """Exchanges messages with the neighbours of a node through its mailboxes.

    Args:
        organisation: The node and its mailboxes.
        topology: The world.
        stopped: Returns whether the run is to stop.
    """

    def __init__(self, organisation: Organisation, topology: Topology, stopped: Callable[[], bool]) -> None:
        self._node = organisation.node
        self._mailboxes = organisation.mailboxes
        self._topology = topology
        self._stopped = stopped

    def is_local(self, name: str) -> bool:
        """Return whether this process holds a node."""
        return name == self._node

    def crosses_processes(self, name: str) -> bool:
        """Return whether different processes hold a node and its parent: always, if it has one."""
        return name != self._topology.root.name

    def send(self, key: MessageKey, content: Any) -> None:
        """Store a message in the mailbox, from which it is sent."""
        self._mailboxes[key.child].send(key, content)

    def receive(self, key: MessageKey) -> Any:
        """Wait until a message is in the mailbox, and return its content; None if it is invalid.

        Raises:
            ValueError: If no message can arrive any more.
            SIGTERMException: If the run is to stop.
        """
        path = self._wait_for(key)
        try:
            content = read_message(path)
            problem = why_invalid(key, content, self._topology)
        except ValueError as error:
            problem = str(error)
        if problem:
            log.warning("round %d: rejected a message from %s: %s", key.round + 1, self._sender(key), problem)
            return None
        return content

    def _wait_for(self, key: MessageKey) -> Path:
        mailbox, began, reported = self._mailboxes[key.child], time.monotonic(), False
        while (path := mailbox.received(key)) is None:
            if self._stopped():
                raise SIGTERMException
            if mailbox.problem:
                raise ValueError(mailbox.problem)
            if not reported and time.monotonic() - began > _SECONDS_BEFORE_REPORT:
                log.info("round %d: waiting for %s", key.round + 1, self._sender(key))
                reported = True
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return path

    def _sender(self, key: MessageKey) -> str:
        parent = self._topology.parent(key.child)
        return key.child if key.kind != "down" or parent is None else parent.name
