"""How processes find one another: who is missing, who died while it waited, and where the store listens."""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from identities import free_port
from torch.distributed.distributed_c10d import Store

from worldlm.distributed import joining
from worldlm.distributed.joining import _await_decision, _collect, join
from worldlm.distributed.transport import RankLost


def _joined(store: Store, rank: int, **settings: str) -> None:
    store.set(f"joined/{rank}", json.dumps([f"process {rank} on east", settings, {}]))


def _soon() -> float:
    return time.monotonic() + 0.2


def test_all_have_joined() -> None:
    store = dist.HashStore()
    for rank in range(3):
        _joined(store, rank, seed="1")
    _collect(store, 3, "east", _soon())
    _await_decision(store, 1, "east", _soon())


def test_the_missing_are_named_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "_SECONDS_TO_READ", 0.0)
    store = dist.HashStore()
    _joined(store, 0)
    _joined(store, 2)
    expected = r"^processes 1, 3 of the run did not join within 10 minutes \(2 of 4 did\): start all of them, "
    with pytest.raises(RankLost, match=expected):
        _collect(store, 4, "east", _soon())
    with pytest.raises(RankLost, match=expected):
        _await_decision(store, 2, "east", _soon())


def test_a_process_that_died_while_it_waited_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "_SECONDS_TO_READ", 0.0)
    monkeypatch.setattr(joining, "SECONDS_OF_SILENCE", 0.2)
    store = dist.HashStore()
    _joined(store, 0)
    _joined(store, 1)
    with pytest.raises(RankLost, match=r"^process 1 on east has joined the run and not answered for 0\.2 seconds: "):
        _collect(store, 3, "east", time.monotonic() + 60)


def test_process_0_is_missing_or_died(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "SECONDS_OF_SILENCE", 0.2)
    store = dist.HashStore()
    with pytest.raises(RankLost, match="^process 0 of the run did not join within 10 minutes"):
        _await_decision(store, 1, "east", _soon())
    store.add("count/0", 1)
    with pytest.raises(RankLost, match=r"^process 0 has joined the run and not answered for 0\.2 seconds"):
        _await_decision(store, 1, "east", time.monotonic() + 60)


def test_all_name_the_setting_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "_SECONDS_TO_READ", 0.0)
    store = dist.HashStore()
    _joined(store, 0, torch="2.13.0", seed="1")
    _joined(store, 1, torch="2.12.0", seed="1")
    expected = "process 1 on east was not started as process 0 on east was: torch is 2.12.0 there and 2.13.0 at"
    with pytest.raises(ValueError, match=expected):
        _collect(store, 2, "east", _soon())
    with pytest.raises(ValueError, match=expected):
        _await_decision(store, 1, "east", _soon())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_on_one_machine_the_store_listens_at_the_loopback_interface() -> None:
    port = free_port()
    store = join(0, 1, "the machine's name", port, {}, {}, one_machine=True)
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    listening = [address for _, address, _, state, *_ in lines if state == "0A"]
    assert [address for address in listening if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
    del store


def test_a_port_that_is_in_use() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(RankLost, match=r"process 0 cannot listen at port \d+ \(.*\): set MASTER_PORT to another"):
            join(0, 2, "127.0.0.1", other.getsockname()[1], {}, {}, one_machine=True)


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "MINUTES_TO_JOIN", 0.0)
    with pytest.raises(
        RankLost, match=r"^process 0 of the run did not join within 0 minutes \(nothing answers at port"
    ):
        join(1, 2, "127.0.0.1", free_port(), {}, {}, one_machine=True)
