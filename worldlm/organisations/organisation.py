"""The node that an organisation runs, and how its messages leave and arrive."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from worldlm.organisations.audit import Audit
from worldlm.organisations.check_message import why_invalid
from worldlm.organisations.mailbox import Mailbox, read_message
from worldlm.organisations.proposals import Proposals, TopologyChanged
from worldlm.rounds.transport import MessageKey, Transport
from worldlm.storage.host_memory import give_back_freed_memory, page_out
from worldlm.storage.pages import tensors_in
from worldlm.topology import Topology
from worldlm.topology.errors import join_names, suggest

_SECONDS_BETWEEN_LOOKS = 0.02
_SECONDS_BEFORE_REPORT = 10.0

_LARGE = 2**25
"""Bytes of a message for which freed memory is given back before. For smaller ones it would cost more than it saves."""

_SECONDS_FOR_LEAVING = 60.0
"""How long a federation waits until children that leave have been told so. Later they would not be let in any more."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Organisation:
    """One node of a world, run by the organisation that owns it, and the mailboxes of its neighbours."""

    node: str
    """Name of the node."""
    mailboxes: Mapping[str, Mailbox]
    """A mailbox for the parent under the node's own name, and one for each child under the child's name."""
    audit: Audit | None = None
    """Records what the node sends; the mailboxes record each message themselves."""
    seed: int | None = None
    """The secret of all random draws of the node; None uses the seed of the run, which others know."""
    is_revoked: Callable[[str], bool] = lambda child: False
    """Returns whether a child may no longer connect, so that it is not waited for."""
    proposals: Proposals | None = None
    """What the node does with proposed changes of the topology; None if there can be none."""

    def check(self, topology: Topology) -> None:
        """Check that the node is in a topology, and that all its neighbours have a mailbox.

        Raises:
            ValueError: If the node is unknown, or a mailbox is missing or superfluous.
        """
        edges = neighbours(topology, self.node).keys()
        if edges != self.mailboxes.keys():
            raise ValueError(
                f"the mailboxes of {self.node} must be for {join_names(sorted(edges)) or 'nobody'}, got "
                f"{join_names(sorted(self.mailboxes)) or 'none'}"
            )

    @property
    def changed_after(self) -> int | None:
        """Number of rounds that were finished when the topology changed last; None if it never did."""
        last = None if self.proposals is None else self.proposals.files.last
        return None if last is None else last.round

    @property
    def joined_at(self) -> int:
        """The first round, from 0, of a node that has joined the world while it trains; of all others it is 0."""
        last = None if self.proposals is None else self.proposals.files.last
        return last.round if last is not None and not last.file else 0

    @property
    def may_change(self) -> bool:
        """Whether a change of the topology is proposed, which may be made before any round."""
        return self.proposals is not None and bool(self.proposals.files.text)

    def catch_up(self, num_rounds: int) -> None:
        """Begin after a checkpoint, or at the beginning.

        Args:
            num_rounds: Number of finished rounds in the checkpoint.

        Raises:
            ValueError: If messages were deleted because a later checkpoint contained their effect.
        """
        for mailbox in self.mailboxes.values():
            if mailbox.num_rounds > num_rounds:
                raise ValueError(
                    f"{mailbox.folder} is of a run with {mailbox.num_rounds} finished rounds, but the checkpoint has "
                    f"{num_rounds}: restore the latest checkpoint, or let all begin again with another --name"
                )
            mailbox.forget(num_rounds)

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


def neighbours(topology: Topology, node: str) -> dict[str, str]:
    """Return the neighbours of a node: for the name of each mailbox, who is at its other end.

    Raises:
        ValueError: If the topology has no such node.
    """
    if node not in topology.nodes:
        names = list(topology.nodes)
        raise ValueError(f"{topology.name} has no node {node!r}; it has {join_names(names, 20)}{suggest(node, names)}")
    parent = topology.parent(node)
    found = {child.name: child.name for child in topology.nodes[node].children}
    return found if parent is None else {**found, node: parent.name}


class MailboxTransport(Transport):
    """Exchanges messages with the neighbours of a node through its mailboxes.

    Args:
        organisation: The node and its mailboxes.
        topology: The world.
        stopped: Returns whether the run is to stop.
    """

    def __init__(self, organisation: Organisation, topology: Topology, stopped: Callable[[], bool]) -> None:
        self._organisation = organisation
        self._node = organisation.node
        self._mailboxes = organisation.mailboxes
        self._topology = topology
        self._stopped = stopped
        self._absent = set[str]()
        """Children whose last message was given up."""
        self._mapped: list[weakref.ref[Tensor]] = []
        """Tensors of the download that this node merges at the moment."""
        self.waits_for: list[str] = []
        """Neighbours whose messages the node waits for at the moment."""

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
        if path.stat().st_size > _LARGE:
            give_back_freed_memory()  # of the last fit, before the message needs it
        try:
            content = read_message(path)
            problem = why_invalid(key, content, self._topology)
        except ValueError as error:
            problem = str(error)
        if problem:
            log.warning("round %d: rejected a message from %s: %s", key.round + 1, self._sender(key), problem)
            return None
        if key.kind == "down":
            self._mapped = [weakref.ref(tensor) for tensor in tensors_in(content)]
        return content

    def after_merge(self) -> None:
        """Page out the download: a private node compares its upload with it, and all others need it no more."""
        page_out(tensor for reference in self._mapped if (tensor := reference()) is not None)
        self._mapped = []

    @property
    def has_real_time(self) -> bool:
        """Deadlines are real seconds."""
        return True

    def receive_all(self, keys: Sequence[MessageKey], seconds: float | None, minimum: int) -> dict[str, Any]:
        """Wait for the messages of several children, and return their contents by child.

        What is late is given up for good: it counts as None, also after a restart and if it arrives later. A child
        whose last message was given up, or that was revoked, is not waited for, unless there are fewer than `minimum`
        others.

        Raises:
            ValueError: If no message can arrive any more.
            SIGTERMException: If the run is to stop.
        """
        began, reported = time.monotonic(), False
        while waiting := [key for key in keys if self._mailboxes[key.child].received(key) is None]:
            self._check_running(waiting)
            self.waits_for = [key.child for key in waiting]
            elapsed, arrived = time.monotonic() - began, len(keys) - len(waiting)
            reasons = {key: self._why_given_up(key, seconds, elapsed) for key in waiting}
            late = [key for key in waiting if reasons[key]]
            if late and arrived + len(waiting) - len(late) >= minimum:
                for key in late:
                    log.warning("round %d: %s %s and is left out", key.round + 1, key.child, reasons[key])
                    self._mailboxes[key.child].give_up(key)
                    self._absent.add(key.child)
                continue
            if not reported and elapsed > _SECONDS_BEFORE_REPORT:
                log.info("round %d: waiting for %s", waiting[0].round + 1, ", ".join(self.waits_for))
                reported = True
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        self.waits_for = []
        given_up = {key.child for key in keys if self._mailboxes[key.child].was_given_up(key)}
        self._absent -= {key.child for key in keys} - given_up
        return {key.child: None if key.child in given_up else self.receive(key) for key in keys}

    def _why_given_up(self, key: MessageKey, seconds: float | None, elapsed: float) -> str:
        """Return why a message is not waited for any longer; empty if it is."""
        if self._organisation.is_revoked(key.child):
            return "was revoked"
        is_late = seconds is not None and (elapsed > seconds or key.child in self._absent)
        return "is late" if is_late else ""

    def _check_running(self, waiting: Sequence[MessageKey]) -> None:
        if self._stopped():
            raise SIGTERMException
        for key in waiting:
            if self._mailboxes[key.child].problem:
                raise ValueError(self._mailboxes[key.child].problem)

    def _wait_for(self, key: MessageKey) -> Path:
        mailbox, began, reported = self._mailboxes[key.child], time.monotonic(), False
        while (path := mailbox.received(key)) is None:
            self._check_running([key])
            if key.kind == "down" and (text := self.change_before(key.round)):
                self.change_topology(key.round, text)
            self.waits_for = [self._sender(key)]
            if not reported and time.monotonic() - began > _SECONDS_BEFORE_REPORT:
                log.info("round %d: waiting for %s", key.round + 1, self._sender(key))
                reported = True
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        self.waits_for = []
        return path

    # ------------------------------------------------------------------ changes of the topology

    def change_before(self, round: int) -> str:
        """Return the topology that the parent has sent in place of the first download of a round, and that is not in
        use yet; empty if there is none.
        """
        if self._organisation.changed_after == round or self._node not in self._mailboxes:
            return ""
        key = MessageKey(child=self._node, kind="change", round=round, subround=0)
        path = self._mailboxes[self._node].received(key)
        content = {"topology": ""} if path is None else read_message(path)
        if not (isinstance(content, dict) and isinstance(text := content.get("topology"), str)):
            raise ValueError(f"the parent of {self._node} sent a change of the topology that has none")
        return text

    def change_topology(self, round: int, text: str) -> NoReturn:
        """Tell the children that the topology changes before a round, and begin again with the new one.

        Args:
            round: The round, from 0.
            text: The new topology, YAML.

        Raises:
            TopologyChanged: Always, once the change is stored.
            ValueError: If this node has not consented to it.
        """
        proposals = self._organisation.proposals
        if proposals is None:
            raise ValueError(f"the topology changes before round {round + 1}, which this run cannot follow")
        change, gone, elsewhere = proposals.changed(round, text)
        children = [child.name for child in self._topology.nodes[self._node].children]
        for child in children:
            self.send(MessageKey(child=child, kind="change", round=round, subround=0), {"topology": text})
        deadline = time.monotonic() + _SECONDS_FOR_LEAVING
        while any(self._mailboxes[child].undelivered() for child in gone) and time.monotonic() < deadline:
            self._check_running([])
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        proposals.files.finish(change, text)
        raise TopologyChanged(elsewhere)

    def _sender(self, key: MessageKey) -> str:
        parent = self._topology.parent(key.child)
        return key.child if key.kind != "down" or parent is None else parent.name
