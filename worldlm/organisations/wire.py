"""How messages travel: the calls of the gRPC service, and files in pieces with their size and digest.

Nothing here is executed from what arrives: calls carry JSON and the bytes of files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

SERVICE = "worldlm.Node"
PIECE = 1 << 20
"""Bytes of a file in one gRPC message."""

MAX_HEADER = 1 << 20
"""Largest JSON that is read, in bytes."""

MAX_SMALL = 1_000_000
"""Size of the largest message without a model, in bytes: yes or no, no download, or a topology."""

OPTIONS = (
    ("grpc.max_receive_message_length", 2 * PIECE),
    ("grpc.max_send_message_length", 2 * PIECE),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)
"""Options of channels and servers. Pings find out that the other side is gone."""


class WireError(ValueError):
    """What arrived is not what the other side may send."""


def pack(content: Any) -> bytes:
    """Return plain values as JSON."""
    return json.dumps(content).encode()


def unpack(payload: bytes) -> dict[str, Any]:
    """Undo `pack`.

    Raises:
        WireError: If it is no JSON object, or too large.
    """
    if len(payload) > MAX_HEADER:
        raise WireError(f"{len(payload)} bytes of JSON are more than {MAX_HEADER}")
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise WireError("it is not JSON") from error
    if not isinstance(content, dict):
        raise WireError("it is not a JSON object")
    return content


def pieces(name: str, path: Path, digest: str) -> Iterator[bytes]:
    """Yield a file for the network: first its name, size and SHA-256, then its content."""
    yield pack({"name": name, "size": path.stat().st_size, "sha256": digest})
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def header(payload: bytes, max_bytes: int) -> tuple[str, int, str]:
    """Read what precedes a file.

    Returns:
        Name, size in bytes, and SHA-256 digest.

    Raises:
        WireError: If it is not as `pieces` sends it, or the file would be larger than `max_bytes`.
    """
    content = unpack(payload)
    name, size, digest = (content.get(key) for key in ("name", "size", "sha256"))
    if not (isinstance(name, str) and type(size) is int and isinstance(digest, str)):
        raise WireError("its name, size or digest is missing")
    if not 0 <= size <= max_bytes:
        raise WireError(f"a message of {size:,} bytes is larger than the {max_bytes:,} that this world can need")
    return name, size, digest


def write_pieces(received: Iterable[bytes], path: Path, size: int, digest: str) -> None:
    """Write a file from the network.

    Raises:
        WireError: If it has another size or digest than its header said. The file may be incomplete then.
    """
    found, total = hashlib.sha256(), 0
    with path.open("wb") as file:
        for piece in received:
            total += len(piece)
            if total > size:
                raise WireError(f"the message is longer than the {size:,} bytes that were announced")
            found.update(piece)
            file.write(piece)
    if total != size or found.hexdigest() != digest:
        raise WireError(f"{total:,} of {size:,} bytes arrived, or they are damaged")
