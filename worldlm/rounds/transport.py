"""How messages travel between nodes that different processes hold. Here: one process holds all nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

Kind: TypeAlias = Literal["ready", "down", "up", "state"]
"""ready: whether a child may take part; down: a Download; up: an Upload; state: all that a node is, to process 0."""


class Transport:
    """Which nodes this process holds, and how it reaches the others. This class holds all nodes in one process.

    `worldlm.distributed.transport.ProcessTransport` sends messages between several processes.
    """

    def is_local(self, name: str) -> bool:
        """Return whether this process holds a node."""
        return True

    def crosses_processes(self, name: str) -> bool:
        """Return whether a node and its parent are held by different processes."""
        return False

    def send(self, name: str, kind: Kind, content: Any) -> None:
        """Send plain containers and tensors to a node (`down`), or from it (the other kinds).

        Args:
            name: The child of the two nodes that exchange a message.
            kind: What is sent.
            content: What `torch.load(weights_only=True)` reads.
        """
        raise NotImplementedError("one process holds all nodes: no message leaves it")

    def receive(self, name: str, kind: Kind) -> Any:
        """Wait for what `send` sends."""
        raise NotImplementedError("one process holds all nodes: no message reaches it")

    def flush(self) -> None:
        """Wait until everything that was sent has arrived."""

    def gather(self, content: Any) -> list[Any]:
        """Return the content of all processes, in their order; all processes call this at the same point."""
        return [content]

    def collect(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Bring to process 0 what belongs to nodes; all processes call this at the same point.

        Args:
            own: What belongs to the nodes of this process, by name.

        Returns:
            At process 0 that of all nodes, in the order of the topology; elsewhere `own`.
        """
        return dict(own)
