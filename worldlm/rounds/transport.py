"""The interface for messages between processes. The class in this module is for a single process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Kind: TypeAlias = Literal["ready", "down", "up", "change"]
"""ready: whether a child may take part; down: a Download; up: an Upload; change: another topology from this round on,
in place of the first download, between organisations only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageKey:
    """Identifies a message of a run."""

    child: str
    """The child of the two nodes that exchange the message."""
    kind: Kind
    """What is sent. `down` and `change` go to the child, the other kinds come from it."""
    round: int
    """Round of the world, from 0."""
    subround: int
    """Sub-round of the parent's federation, counted from 0 over the whole round."""


class Transport:
    """Reports which nodes this process holds, and sends messages to other processes. This class holds all nodes.

    `worldlm.distributed.transport.ProcessTransport` sends messages between several processes.
    """

    def is_local(self, name: str) -> bool:
        """Return whether this process holds a node."""
        return True

    def crosses_processes(self, name: str) -> bool:
        """Return whether different processes hold a node and its parent."""
        return False

    def send(self, key: MessageKey, content: Any) -> None:
        """Send a message. The content may change as soon as this method returns.

        Args:
            key: Identifies the message.
            content: Plain containers and tensors that `torch.load(weights_only=True)` can read.
        """
        raise NotImplementedError("one process holds all nodes, so that no message leaves it")

    def receive(self, key: MessageKey) -> Any:
        """Wait for a message, and return its content."""
        raise NotImplementedError("one process holds all nodes, so that it receives no messages")

    def receive_all(self, keys: Sequence[MessageKey], seconds: float | None, minimum: int) -> dict[str, Any]:
        """Wait for the messages of several children, and return their contents by child.

        Between organisations, time is real: a message that is late is given up, and its child is missing in the result.

        Args:
            keys: Identify the messages, one for each child.
            seconds: How long to wait; None waits for all.
            minimum: Number of messages to wait for in any case.
        """
        return {key.child: self.receive(key) for key in keys}

    def after_merge(self) -> None:
        """Free memory, after a node has merged the download that it received last."""

    @property
    def has_real_time(self) -> bool:
        """Whether deadlines are real seconds. Otherwise they are simulated from the links of the topology."""
        return False

    def flush(self) -> None:
        """Wait until everything that was sent has arrived."""

    def gather(self, content: Any) -> list[Any]:
        """Return the contents of all processes, in their order. All processes call this at the same point."""
        return [content]

    def collect(self, local: Mapping[str, Any]) -> dict[str, Any]:
        """Collect the contents of all nodes at process 0. All processes call this at the same point.

        Args:
            local: The content of each node that this process holds, by name.

        Returns:
            At process 0 the contents of all nodes, in the order of the topology; elsewhere `local`.
        """
        return dict(local)
