"""Keys and certificates of all nodes of a topology, for tests."""

from __future__ import annotations

import socket
from pathlib import Path

from worldlm.organisations.identity import Identity
from worldlm.topology import Topology


def create_identity(folder: Path, node: str) -> Identity:
    identity = Identity(folder / node / "identity")
    identity.create(node)
    return identity


def answer_to(parent: Identity, child: Identity) -> Path:
    """Let a parent admit a child, and return the answer, which the child has not accepted yet."""
    answer = child.folder / "answer.pem"
    answer.write_bytes(parent.admit(child.folder / "request.csr")[1])
    return answer


def admit(parent: Identity, child: Identity) -> None:
    child.accept(answer_to(parent, child))


def create_identities(folder: Path, topology: Topology) -> dict[str, Identity]:
    """Create the keys of all nodes, and let every parent admit its children."""
    identities = {name: create_identity(folder, name) for name in topology.nodes}
    for name, identity in identities.items():
        if (parent := topology.parent(name)) is not None:
            admit(identities[parent.name], identity)
    return identities


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
