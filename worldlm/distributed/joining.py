"""How the processes of a run find one another: through a key-value store, at process 0 or at torchrun's agent.

Process 0 collects the names and the settings of all others. It then writes its decision for them to read: to start,
or why the run cannot start. While they wait, all count upwards in the store, so that a process that died is noticed.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from worldlm.distributed.consistency import check_consistent, this_process, warn_of_differences
from worldlm.distributed.heartbeat import Silence
from worldlm.distributed.transport import RankLost, short_message
from worldlm.topology.errors import join_names

log = logging.getLogger(__name__)

MINUTES_TO_JOIN = 10.0
"""How long a process waits until all others have started."""
SECONDS_OF_SILENCE = 60.0
"""A process that has joined, waits for others, and does not count for so long, is lost."""
SECONDS_TO_NOTICE = 30.0
"""After this time, process 0 logs for which processes it waits."""

_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_TO_READ = 5.0
"""How long process 0 keeps the store open until the others have read why the run cannot start."""
_LOOPBACK = "127.0.0.1"
_DECISION, _NUM_READ = "decision", "read"
_numbers = itertools.count()
"""How often this process has joined others."""

Settings = Mapping[str, str]


def join(
    rank: int,
    num_ranks: int,
    address: str,
    port: int,
    must_match: Settings,
    should_match: Settings,
    *,
    one_machine: bool,
) -> Store:
    """Wait until all processes of a run have started, and check that their settings agree.

    Args:
        rank: The number of this process.
        num_ranks: The number of processes.
        address: Name or address of the machine of process 0.
        port: The port at which the store listens.
        must_match: Settings that must be equal in all processes, by name.
        should_match: Settings whose differences process 0 warns of, by name.
        one_machine: Whether all processes are on this machine. The store then listens at the loopback interface only.

    Returns:
        The store.

    Raises:
        RankLost: If a process is missing, died while it waited, or cannot be reached.
        ValueError: If the settings of processes differ.
    """
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by the agent of torchrun
    address = _LOOPBACK if one_machine and not hosted else address
    deadline = time.monotonic() + 60 * MINUTES_TO_JOIN
    try:
        attempt = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_numbers)}"
        opened = _open_store(rank, num_ranks, address, port, hosted, one_machine, deadline)
        store = PrefixStore(f"worldlm/{attempt}", opened)
        store.set(_key("joined", rank), json.dumps([this_process(rank), dict(must_match), dict(should_match)]))
        if rank == 0:
            _collect(store, num_ranks, address, deadline)
        else:
            _await_decision(store, rank, address, deadline)
        return store
    except RankLost:
        raise
    except RuntimeError as error:  # of the store
        raise RankLost(f"process 0 of the run is gone or cannot be reached ({short_message(error)})") from error


def _open_store(
    rank: int, num_ranks: int, address: str, port: int, hosted: bool, one_machine: bool, deadline: float
) -> TCPStore:
    is_host, listener = rank == 0 and not hosted, None
    if not is_host:
        _wait_for_host(address, port, deadline)
    elif one_machine:
        listener = _listen(port)
    return TCPStore(
        address,
        port,
        num_ranks,
        is_host,
        timedelta(minutes=MINUTES_TO_JOIN),
        wait_for_workers=False,
        multi_tenant=listener is None,
        master_listen_fd=listener,
    )


def _listen(port: int) -> int:
    """Return the file descriptor of a socket that listens at the loopback interface."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_LOOPBACK, port))
        listener.listen(socket.SOMAXCONN)
    except OSError as error:
        listener.close()
        raise RankLost(
            f"process 0 cannot listen at port {port} ({error.strerror}): set MASTER_PORT to another"
        ) from error
    return listener.detach()


def _wait_for_host(address: str, port: int, deadline: float) -> None:
    """Wait until the store can be reached. torch would print a page for every failed attempt, and ignore Ctrl-C."""
    while True:
        try:
            socket.create_connection((address, port), timeout=5.0).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                reason = f"nothing answers at port {port}: {error.strerror or error}"
                raise RankLost(_missing([0], address, reason)) from error
        time.sleep(_SECONDS_BETWEEN_LOOKS)


# ---------------------------------------------------------------------- process 0


def _collect(store: Store, num_ranks: int, address: str, deadline: float) -> None:
    """Wait for all other processes, and write the decision that they read."""
    try:
        for _ in _until_joined(store, num_ranks, address, deadline):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        joined = [json.loads(store.get(_key("joined", rank))) for rank in range(num_ranks)]
        check_consistent([(name, must_match) for name, must_match, _ in joined])
        warn_of_differences([(name, should_match) for name, _, should_match in joined])
    except (RankLost, ValueError) as error:
        store.set(_DECISION, json.dumps([type(error).__name__, str(error)]))
        _let_others_read(store, num_ranks)
        raise
    store.set(_DECISION, json.dumps(["start", ""]))


def _until_joined(store: Store, num_ranks: int, address: str, deadline: float) -> Iterator[None]:
    """Yield until all processes have joined."""
    missing, started, noticed = set(range(num_ranks)), time.monotonic(), False
    silences = {rank: _silence() for rank in missing if rank}
    while True:
        store.add(_key("count", 0), 1)
        missing -= {rank for rank in missing if store.check([_key("joined", rank)])}
        if not missing:
            return
        for rank in silences.keys() - missing:
            if silences[rank].lasts(store.add(_key("count", rank), 0)):
                raise RankLost(_silent(json.loads(store.get(_key("joined", rank)))[0]))
        if time.monotonic() > deadline:
            raise RankLost(_missing(sorted(missing), address, f"{num_ranks - len(missing)} of {num_ranks} did"))
        if not noticed and time.monotonic() > started + SECONDS_TO_NOTICE:
            noticed = True
            log.warning("waiting for %s to start, at most %g minutes", _numbered(sorted(missing)), MINUTES_TO_JOIN)
        yield


def _let_others_read(store: Store, num_ranks: int) -> None:
    """Keep the store open until all processes that joined have read the decision."""
    joined = sum(store.check([_key("joined", rank)]) for rank in range(1, num_ranks))
    deadline = time.monotonic() + _SECONDS_TO_READ
    while store.add(_NUM_READ, 0) < joined and time.monotonic() < deadline:
        time.sleep(_SECONDS_BETWEEN_LOOKS)


# ---------------------------------------------------------------------- all others


def _await_decision(store: Store, rank: int, address: str, deadline: float) -> None:
    """Wait for the decision of process 0."""
    first = _silence()
    while not store.check([_DECISION]):
        store.add(_key("count", rank), 1)
        if first.lasts(number := store.add(_key("count", 0), 0)) and number:
            raise RankLost(_silent("process 0"))
        if not number and time.monotonic() > deadline:
            raise RankLost(_missing([0], address, "it has not joined"))
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    decision, message = json.loads(store.get(_DECISION))
    if decision != "start":
        store.add(_NUM_READ, 1)
        raise RankLost(message) if decision == RankLost.__name__ else ValueError(message)


def _silence() -> Silence:
    return Silence(SECONDS_OF_SILENCE / _SECONDS_BETWEEN_LOOKS)


def _key(kind: str, rank: int) -> str:
    return f"{kind}/{rank}"


def _numbered(ranks: list[int]) -> str:
    return f"process{'es' if len(ranks) > 1 else ''} {join_names(list(map(str, ranks)))}"


def _silent(name: str) -> str:
    return (
        f"{name} has joined the run and not answered for {SECONDS_OF_SILENCE:g} seconds: "
        "it has ended or is stopped; start all processes again"
    )


def _missing(ranks: list[int], address: str, reason: str) -> str:
    return (
        f"{_numbered(ranks)} of the run did not join within {MINUTES_TO_JOIN:g} minutes ({reason}): start all of them, "
        f"and check that each can reach the others and {address}; if a machine has several networks, set "
        "GLOO_SOCKET_IFNAME to the interface to use"
    )
