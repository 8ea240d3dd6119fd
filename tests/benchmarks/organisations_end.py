"""One end of the connection that `organisations.py` measures: a process that carries out the lines on its stdin.

gRPC is used only here, because a process that uses it must not start others.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import torch
from torch import Tensor

from worldlm.federation.parameters import copy_
from worldlm.organisations.audit import Audit
from worldlm.organisations.certificates import host_of
from worldlm.organisations.identity import Identity
from worldlm.organisations.link import Link
from worldlm.organisations.mailbox import Mailbox, read_message
from worldlm.organisations.server import Server
from worldlm.organisations.wire import OPTIONS, PIECE
from worldlm.rounds.transport import Kind, MessageKey
from worldlm.storage.host_memory import keep_freed_memory

LARGEST = 10**9
Moment: TypeAlias = tuple[float, float]
"""Wall and CPU seconds."""


def now() -> Moment:
    """Return the seconds so far."""
    return time.monotonic(), time.process_time()


# ---------------------------------------------------------------------- plain gRPC


def pieces(path: Path) -> Iterator[bytes]:
    """Yield a file in pieces."""
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def write(received: Iterable[bytes], path: Path, sync: bool) -> None:
    """Write a file that arrives in pieces."""
    with path.open("wb") as file:
        file.writelines(received)
        if sync:
            file.flush()
            os.fsync(file.fileno())


def serve_plain(folder: Path, identity: Identity, address: str) -> Any:
    """Serve copies of the message's file in both directions."""

    def put(received: Iterator[bytes], context: Any) -> bytes:
        write(received, folder / "copy", sync=next(received) == b"sync")
        return b""

    handlers = {
        "put": grpc.stream_unary_rpc_method_handler(put),
        "get": grpc.unary_stream_rpc_method_handler(lambda request, context: pieces(folder / "message")),
    }
    key, certificate, authority = identity.server_certificates()
    server = grpc.server(ThreadPoolExecutor(4), options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("plain", handlers),))
    server.add_secure_port(address, grpc.ssl_server_credentials([(key, certificate)], authority, True))
    server.start()
    return server


class PlainClient:
    """Copies the message's file up or down."""

    def __init__(self, folder: Path, identity: Identity, address: str) -> None:
        certificate, authority = identity.certificates()
        credentials = grpc.ssl_channel_credentials(authority, identity.key, certificate)
        options = (*OPTIONS, ("grpc.ssl_target_name_override", host_of("root")))
        channel = grpc.secure_channel(address, credentials, options)
        self._folder = folder
        self._put, self._get = channel.stream_unary("/plain/put"), channel.unary_stream("/plain/get")

    def copy(self, way: str, sync: bool) -> tuple[Moment, Moment]:
        """Copy the file, and return when this began and ended."""
        began = now()
        if way == "up":
            self._put(self._request(sync))
        else:
            write(self._get(b""), self._folder / "copy", sync)
        return began, now()

    def _request(self, sync: bool) -> Iterator[bytes]:
        yield b"sync" if sync else b""
        yield from pieces(self._folder / "message")


# ---------------------------------------------------------------------- mailboxes


class Post:
    """Sends and receives the message through a mailbox."""

    def __init__(self, mailbox: Mailbox, message: dict[str, Tensor]) -> None:
        self._mailbox = mailbox
        self._message = message

    def send(self, kind: Kind, number: int) -> tuple[Moment, ...]:
        """Send the message, and return when this began, and when it was saved here and stored at the other end."""
        began = now()
        self._mailbox.send(_key(kind, number), self._message)
        saved = now()
        while self._mailbox.undelivered():
            time.sleep(0.01)
        return began, saved, now()

    def receive(self, kind: Kind, number: int) -> tuple[Moment, ...]:
        """Receive the message, and return when this began, and when it was stored and copied into memory."""
        began = now()
        while (path := self._mailbox.received(_key(kind, number))) is None:
            time.sleep(0.01)
        stored = now()
        copy_(self._message, read_message(path))
        return began, stored, now()

    def forget(self, number: int) -> None:
        """Delete the message."""
        self._mailbox.forget(number + 1)


def _key(kind: Kind, number: int) -> MessageKey:
    return MessageKey(child="leaf0", kind=kind, round=number, subround=0)


def main(folder: Path, name: str, address: str, plain: str) -> None:
    """Connect to the other end, then carry out lines of JSON, and answer each with one."""
    keep_freed_memory()  # as `worldlm serve` does
    home = folder / name
    identity, audit = Identity(home / "identity"), Audit(home / "sent.jsonl")
    mailbox = Mailbox(home / "mail", "leaf0", partial(audit.add_message, "the other end"))
    post = Post(mailbox, torch.load(folder / "message", weights_only=True))
    actions: dict[str, Callable[..., Any]] = {"send": post.send, "receive": post.receive, "forget": post.forget}
    if name == "root":
        servers = Server(address, identity, {"leaf0": mailbox}, {}, LARGEST), serve_plain(folder, identity, plain)
        actions["now"] = lambda: (now(), len(servers))
    else:
        link = Link(address, "root", identity, mailbox, {}, LARGEST)
        link.start(lambda: False)
        actions["copy"] = PlainClient(folder, identity, plain).copy
    for line in sys.stdin:
        action, *arguments = json.loads(line)
        print(json.dumps(actions[action](*arguments)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
