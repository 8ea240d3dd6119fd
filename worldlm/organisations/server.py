"""The server of a federation: its children connect to it, send their messages and fetch their own."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import grpc

from worldlm.organisations.agreement import Agreement, differences
from worldlm.organisations.identity import Identity
from worldlm.organisations.mailbox import LOST, Mailbox, Stored, TooEarly
from worldlm.organisations.proposals import Proposals
from worldlm.organisations.wire import (
    MAX_SMALL,
    OPTIONS,
    SERVICE,
    WireError,
    header,
    pack,
    pieces,
    unpack,
    write_pieces,
)

log = logging.getLogger(__name__)

_SECONDS_TO_WAIT = 20.0
"""How long a call of a child waits for a message before the child calls again."""

_SECONDS_BETWEEN_LOOKS = 0.02


class NotAdmitted(WireError):
    """Who calls is no child of this federation, or not any more."""


class Server:
    """Serves the children of a federation. It is told who calls by the certificate of the connection.

    Args:
        address: HOST:PORT to listen at.
        identity: Of this node.
        mailboxes: One for each child, by name.
        agreement: What all organisations must agree on.
        max_bytes: Size of the largest message that this world can need.
        proposals: Passed on to the children; None if there can be none.

    Raises:
        OSError: If the address is in use or does not exist.
    """

    def __init__(
        self,
        address: str,
        identity: Identity,
        mailboxes: Mapping[str, Mailbox],
        agreement: Agreement,
        max_bytes: int,
        proposals: Proposals | None = None,
    ) -> None:
        self._identity = identity
        self._mailboxes = mailboxes
        self._agreement = agreement
        self._max_bytes = max_bytes
        self._proposals = proposals
        self._last_seen: dict[str, float] = {}
        self._told: set[tuple[str, str]] = set()
        # one child may hold at most four calls, so that it cannot keep the others out
        self._calls = {child: threading.BoundedSemaphore(4) for child in mailboxes}
        key, certificate, authority = identity.server_certificates()
        credentials = grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=True)
        options = (*OPTIONS, ("grpc.so_reuseport", 0))  # a port in use is an error
        self._server = grpc.server(ThreadPoolExecutor(4 * len(mailboxes) + 4), options=options)
        handlers = {
            "Hello": grpc.unary_unary_rpc_method_handler(self._hello),
            "Put": grpc.stream_unary_rpc_method_handler(self._put),
            "Consult": grpc.unary_unary_rpc_method_handler(self._consult),
            "Stored": grpc.unary_unary_rpc_method_handler(self._stored),
            "Get": grpc.unary_stream_rpc_method_handler(self._get),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        try:
            self.port = self._server.add_secure_port(address, credentials)
            """The port, also if that of the address is 0."""
        except RuntimeError as error:
            raise OSError(f"cannot listen at {address}: it is in use, or no address of this machine") from error
        self._server.start()

    def stop(self) -> None:
        """End all calls and connections."""
        self._server.stop(grace=1.0).wait()

    def last_seen(self) -> dict[str, float]:
        """Return when each child has called last, in seconds since 1970; a child that never did is missing."""
        return dict(self._last_seen)

    # ------------------------------------------------------------------ calls

    def _hello(self, request: bytes, context: Any) -> bytes:
        """A child says what it has agreed to, and is told what differs here."""
        with self._call(context) as child:
            asked, mailbox = unpack(request), self._mailboxes[child]
            found = differences(self._agreement, asked.get("agreement"), self._identity.node, child)
            if mailbox.has_sent_change():  # the child has not made the change yet, and is about to receive it
                found = []
            joins_at = 0 if self._proposals is None else self._proposals.files.joins_at(child)
            if not found:
                theirs = Stored.parse(asked.get("stored"))
                theirs = replace(theirs, num_rounds=max(theirs.num_rounds, joins_at))
                mailbox.redeliver(theirs)
                found = [LOST.format(us=self._identity.node, them=child)] if mailbox.has_lost(theirs, "down") else []
            for line in found:
                self._tell(child, line)
            return pack({"differences": found, "stored": mailbox.stored().plain(), "joins_at": joins_at})

    def _put(self, received: Iterator[bytes], context: Any) -> bytes:
        """A child sends a message."""
        with self._call(context) as child:
            mailbox = self._mailboxes[child]
            name, size, digest = header(next(received, b""), self._max_bytes)
            if name.endswith(".ready") and size > MAX_SMALL:
                raise WireError(f"{size:,} bytes are more than yes or no")
            if mailbox.expects_from_child(name):
                write_pieces(received, mailbox.arriving(name), size, digest)
                mailbox.store(name)
            return pack({"is_late": mailbox.is_late(name)})

    def _consult(self, request: bytes, context: Any) -> bytes:
        """A child says to which proposal it consents, with all nodes below it, and is told what is proposed."""
        with self._call(context) as child:
            if self._proposals is None:
                return pack({"proposal": ""})
            digest = unpack(request).get("consents")
            if isinstance(digest, str) and re.fullmatch("[0-9a-f]{0,32}", digest):
                self._proposals.files.note(child, digest)
            return pack({"proposal": self._proposals.proposed})

    def _stored(self, request: bytes, context: Any) -> bytes:
        """A child has stored a message."""
        with self._call(context) as child:
            self._mailboxes[child].mark_delivered(str(unpack(request).get("name")))
            return pack({})

    def _get(self, request: bytes, context: Any) -> Iterator[bytes]:
        """A child fetches its next message. The call waits for one."""
        with self._call(context) as child:
            mailbox = self._mailboxes[child]
            deadline = time.monotonic() + _SECONDS_TO_WAIT
            while context.is_active() and time.monotonic() < deadline:
                if waiting := mailbox.undelivered():
                    self._caller(context)  # it may have been revoked while it waited
                    yield from pieces(waiting[0], mailbox.path(waiting[0]), mailbox.digest(waiting[0]))
                    return
                time.sleep(_SECONDS_BETWEEN_LOOKS)

    # ------------------------------------------------------------------ who calls

    def _call(self, context: Any) -> _Call:
        return _Call(self, context)

    def _caller(self, context: Any) -> str:
        """Return the child that calls, by its certificate.

        Raises:
            NotAdmitted: If it is no child of this federation, or its certificate was revoked or replaced.
        """
        facts: dict[str, list[bytes]] = context.auth_context()
        child = b"".join(facts.get("x509_common_name", [])).decode("utf-8", "replace")[:64]
        if child not in self._mailboxes:
            raise NotAdmitted(f"{child!r} is no child of {self._identity.node}")
        if not self._identity.is_admitted(child, b"".join(facts.get("x509_pem_cert", []))):
            raise NotAdmitted(
                f"the certificate of {child} was revoked or replaced (organisations accept stores a new one)"
            )
        return child

    def _tell(self, child: str, line: str) -> None:
        """Log a line about a child once."""
        if (child, line) not in self._told:
            self._told.add((child, line))
            log.warning("%s: %s", child, line)


class _Call:
    """One call of a child. What it does wrong ends the call, and is logged in one line."""

    def __init__(self, server: Server, context: Any) -> None:
        self._server = server
        self._context = context
        self._child = ""
        self._release: Callable[[], None] | None = None

    def __enter__(self) -> str:
        server = self._server
        try:
            self._child = server._caller(self._context)
        except NotAdmitted as error:
            server._tell("a caller", str(error))
            self._context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        semaphore = server._calls[self._child]
        if not semaphore.acquire(blocking=False):
            self._context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls at a time")
        self._release = semaphore.release
        server._last_seen[self._child] = time.time()
        return self._child

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._release is not None:
            self._release()
        if isinstance(error, NotAdmitted):
            self._context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        if isinstance(error, ValueError):
            self._server._tell(self._child, f"rejected what it sent: {error}")
            self._context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if isinstance(error, TooEarly):
            self._context.abort(grpc.StatusCode.UNAVAILABLE, str(error))  # it tries again
        if isinstance(error, OSError):
            self._server._tell(self._child, f"its message could not be stored: {error}")
            self._context.abort(grpc.StatusCode.UNAVAILABLE, "the message could not be stored")  # it tries again
