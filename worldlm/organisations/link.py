"""The connection of a child to its parent. The child always calls, so it needs no open port."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
from lightning.pytorch.utilities.exceptions import SIGTERMException

from worldlm.organisations.agreement import Agreement
from worldlm.organisations.certificates import host_of
from worldlm.organisations.identity import Identity
from worldlm.organisations.mailbox import LOST, Mailbox, Stored
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

_SECONDS_BETWEEN_LOOKS = 0.02
_LONGEST_PAUSE = 5.0
"""Seconds between two attempts to reach a parent that does not answer."""

_SECONDS_BETWEEN_REPORTS = 60.0
_SECONDS_BETWEEN_QUESTIONS = 2.0

_SECONDS_FOR_CHANGE = 120.0
"""How long a child that has changed its topology waits until its parent has done so too."""

_FINAL = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED)
"""Answers that another attempt would not change."""

_IMPOSTORS = {
    "Hostname Verification Check failed": "is another node than {parent}",
    "WRONG_VERSION_NUMBER": "is no worldlm serve",
    "certificate": "has no certificate of the authority that has admitted this node",
}
"""Part of what gRPC says if the connection cannot be secured -> what that says about the program at the address."""


class Link:
    """Exchanges the messages of a child with its parent, in the background.

    Args:
        address: HOST:PORT of the parent.
        parent: Name of the parent. Its certificate must be valid for this node, at whatever address.
        identity: Of this node.
        mailbox: The messages between the two.
        agreement: What all organisations must agree on.
        max_bytes: Size of the largest message that this world can need.
        sends_up: Whether the child sends anything, as all do but listeners.
        proposals: What the node does with proposed changes of the topology; None if there can be none.
    """

    def __init__(
        self,
        address: str,
        parent: str,
        identity: Identity,
        mailbox: Mailbox,
        agreement: Agreement,
        max_bytes: int,
        sends_up: bool = True,
        proposals: Proposals | None = None,
    ) -> None:
        certificate, authority = identity.certificates()
        credentials = grpc.ssl_channel_credentials(authority, identity.key, certificate)
        options = (*OPTIONS, ("grpc.ssl_target_name_override", host_of(parent)))
        self._address = address
        self._parent = parent
        self._mailbox = mailbox
        self._agreement = agreement
        self._max_bytes = max_bytes
        self._sends_up = sends_up
        self._proposals = proposals
        self.joins_at = 0
        """The first round, from 0, of a node that has joined the world while it trains."""
        self._ended = threading.Event()
        self._channel = grpc.secure_channel(address, credentials, options)
        self._hello = self._channel.unary_unary(f"/{SERVICE}/Hello")
        self._consult = self._channel.unary_unary(f"/{SERVICE}/Consult")
        self._put = self._channel.stream_unary(f"/{SERVICE}/Put")
        self._stored = self._channel.unary_unary(f"/{SERVICE}/Stored")
        self._get = self._channel.unary_stream(f"/{SERVICE}/Get")
        self._reported, self._reported_at = "", 0.0
        self._unstored = False
        self._answered = time.monotonic()
        self.last_answer: float | None = None
        """When the parent answered last, in seconds since 1970; None if it never did."""
        self._threads = [
            threading.Thread(target=self._repeat, args=(work,), daemon=True, name=f"link-{work.__name__}")
            for work in (self._send_all, self._fetch_all, self._ask_for_proposals)
        ]

    def start(self, stopped: Callable[[], bool]) -> None:
        """Greet the parent, and start to exchange messages. Waits until the parent answers.

        Args:
            stopped: Returns whether the run is to stop; the node then stops waiting.

        Raises:
            ValueError: If the parent rejects this node, or has agreed to something else.
            SIGTERMException: If the run is to stop.
        """
        pause, began = 0.5, time.monotonic()
        while True:
            if stopped():
                raise SIGTERMException
            try:
                greeting = {"agreement": self._agreement, "stored": self._mailbox.stored().plain()}
                answer = unpack(self._hello(pack(greeting), timeout=30.0))
            except grpc.RpcError as error:
                awaits_change = self._awaits_change() and time.monotonic() - began < _SECONDS_FOR_CHANGE
                if error.code() in _FINAL and not awaits_change:
                    raise ValueError(
                        f"{self._parent} at {self._address} rejects this node: {error.details()}"
                    ) from error
                if found := [text for part, text in _IMPOSTORS.items() if part in str(error.details())]:
                    problem = found[0].format(parent=self._parent)
                    raise ValueError(f"what answers at {self._address} {problem}") from error
                self._report(f"no worldlm serve of {self._parent} answers at {self._address} yet: {_reason(error)}")
                pause = self._wait(pause, stopped)
                continue
            if lines := [str(line) for line in answer.get("differences", [])]:
                if self._awaits_change() and time.monotonic() - began < _SECONDS_FOR_CHANGE:
                    self._wait(pause, stopped)
                    continue
                raise ValueError("\n".join(lines))
            joins_at = answer.get("joins_at")
            self.joins_at = joins_at if type(joins_at) is int and joins_at > 0 else 0
            theirs = Stored.parse(answer.get("stored"))
            self._mailbox.redeliver(theirs)
            if self._sends_up and self._mailbox.has_lost(theirs, "ready"):
                raise ValueError(LOST.format(us=self._mailbox.child, them=self._parent))
            self._report_connected()
            break
        for thread in self._threads:
            thread.start()

    def _awaits_change(self) -> bool:
        """Return whether this node has just changed its topology, and the parent may not have done so yet."""
        last = None if self._proposals is None else self._proposals.files.last
        return last is not None and last.round == self._mailbox.num_rounds

    @property
    def is_idle(self) -> bool:
        """Whether both sides have stored all that they have exchanged so far."""
        return not (self._unstored or self._mailbox.undelivered())

    def stop(self) -> None:
        """End the connection."""
        self._ended.set()
        self._channel.close()

    # ------------------------------------------------------------------ in the background

    def _repeat(self, work: Any) -> None:
        """Repeat a piece of work. After a lost connection, try again after a pause that grows."""
        pause = 0.5
        while not self._ended.is_set():
            try:
                work()
                pause = 0.5
            except grpc.RpcError as error:
                if self._ended.is_set():
                    return
                if error.code() in _FINAL:
                    self._mailbox.problem = f"{self._parent} rejects what this node sends: {error.details()}"
                    return
                self._report(f"{self._parent} at {self._address} does not answer: {_reason(error)}; trying again")
                pause = self._wait(pause)
            except (WireError, OSError) as error:
                self._report(f"what {self._parent} sent was rejected: {error}")
                pause = self._wait(pause)
            except ValueError:  # grpc: the channel was closed
                return

    def _wait(self, pause: float, stopped: Callable[[], bool] = lambda: False) -> float:
        """Wait some seconds before another attempt, and return how long to wait the next time."""
        end = time.monotonic() + pause
        while time.monotonic() < end and not stopped():
            self._ended.wait(min(pause, 0.1))
        return min(2 * pause, _LONGEST_PAUSE)

    def _send_all(self) -> None:
        for name in self._mailbox.undelivered():
            answer = unpack(self._put(pieces(name, self._mailbox.path(name), self._mailbox.digest(name))))
            self._mailbox.mark_delivered(name)
            self._report_connected()
            if answer.get("is_late") is True:
                number = int(name.partition(".")[0]) + 1
                log.warning("round %d: %s went on without this node, which was late", number, self._parent)
        self._ended.wait(_SECONDS_BETWEEN_LOOKS)

    def _fetch_all(self) -> None:
        received = self._get(b"{}")
        first = next(received, None)
        self._report_connected()
        if first is not None:  # otherwise nothing came while the parent waited
            name = self._store(first, received)
            self._stored(pack({"name": name}))
            self._unstored = False

    def _ask_for_proposals(self) -> None:
        if self._proposals is not None:
            answer = unpack(self._consult(pack({"consents": self._proposals.agreed()}), timeout=30.0))
            self._proposals.take(str(answer.get("proposal", "")))
        self._ended.wait(_SECONDS_BETWEEN_QUESTIONS)

    def _store(self, first: bytes, received: Iterator[bytes]) -> str:
        self._unstored = True
        name, size, digest = header(first, self._max_bytes)
        if self._mailbox.expects_from_parent(name):
            is_due = self._mailbox.has_announced(name) or not self._sends_up
            if size > MAX_SMALL and not is_due:  # otherwise a parent could fill the disk
                raise WireError(f"a message of {size:,} bytes before this node was ready for it")
            arriving: Path = self._mailbox.arriving(name)
            write_pieces(received, arriving, size, digest)
            self._mailbox.store(name)
        return name

    def seconds_since_answer(self) -> float:
        """Return how long ago the parent answered last."""
        return time.monotonic() - self._answered

    def _report_connected(self) -> None:
        self._answered, self.last_answer = time.monotonic(), time.time()
        self._report(f"connected to {self._parent} at {self._address}")

    def _report(self, line: str) -> None:
        """Log a line, unless it was the last one less than a minute ago or says that all is well."""
        is_repeated = line == self._reported and not line.startswith("connected")
        if line != self._reported or (is_repeated and time.monotonic() - self._reported_at > _SECONDS_BETWEEN_REPORTS):
            self._reported, self._reported_at = line, time.monotonic()
            log.info("%s", line)


def _reason(error: Any) -> str:
    return str(error.details() or error.code()).splitlines()[0][:200]
