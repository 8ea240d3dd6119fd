"""Deadlines between organisations are real seconds: who is late is left out, and may take part again."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worldlm.callbacks import LastCheckpoint
from worldlm.organisations.mailbox import Mailbox
from worldlm.organisations.organisation import MailboxTransport, Organisation
from worldlm.rounds.transport import MessageKey
from worldlm.topology import Topology, parse_topology

Make = Callable[..., Any]


def topology_of(text: str) -> Topology:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*deadline_seconds has no effect at 'world' in a simulation")
        return parse_topology(text, "topology.yaml")


def star(settings: str) -> Topology:
    return topology_of(
        f"""
name: star
settings: {{num_local_steps: 2, batch_size: 2, {settings}}}
root:
  name: world
  children: [{{name: a, corpus: a}}, {{name: b, corpus: b}}]
"""
    )


@pytest.fixture
def run_late(at_home: Make, one_node: Make, whole_method: Make) -> Make:
    """Return a function that runs a star whose node `b` comes some seconds late, and returns all nodes' states."""

    def run(topology: Topology, seconds: float, **options: Any) -> dict[str, Any]:
        job = one_node(topology, lambda: [*whole_method(), LastCheckpoint()], **options)

        def late(organisation: Organisation, folder: Path) -> Any:
            time.sleep(seconds if organisation.node == "b" else 0.0)
            return job(organisation, folder)

        return at_home(topology, late)

    return run


def test_a_late_child_is_left_out(run_late: Make) -> None:
    found = run_late(star("deadline_seconds: 0.5"), seconds=3.5, max_epochs=2)
    visits = {name: states["state"]["num_visits"] for name, states in found.items()}
    assert visits == {"world": 0, "a": 2, "b": 0}
    assert found["b"]["state"]["num_messages"] == 0
    assert found["b"]["state"]["bytes_up"] == 0


def test_a_federation_waits_for_its_min_participants(run_late: Make, differences: Make) -> None:
    topology = star("deadline_seconds: 0.5, min_participants: 2")
    late, in_time = run_late(topology, seconds=2.0), run_late(topology, seconds=0.0)
    assert late["b"]["state"]["num_visits"] == 2
    for name in topology.nodes:
        assert differences(late[name], in_time[name]) == [], name


LEADER = """
name: leader
settings: {num_local_steps: 2, batch_size: 2, deadline_seconds: 0.5, min_participants: 2}
root:
  name: world
  corpus: w
  children: [{name: a, corpus: a}, {name: b, corpus: b}]
"""


def test_a_federation_with_text_is_one_of_its_participants(run_late: Make) -> None:
    found = run_late(topology_of(LEADER), seconds=3.5, max_epochs=2)
    assert {name: states["state"]["num_visits"] for name, states in found.items()} == {"world": 2, "a": 2, "b": 0}


@pytest.fixture
def transport(tmp_path: Path) -> MailboxTransport:
    mailboxes = {name: Mailbox(tmp_path / name, name) for name in ("a", "b", "revoked")}
    organisation = Organisation(node="world", mailboxes=mailboxes, is_revoked=lambda child: child == "revoked")
    return MailboxTransport(organisation, star("participation: 1.0"), lambda: False)


def ready(child: str, round: int) -> MessageKey:
    return MessageKey(child=child, kind="ready", round=round, subround=0)


def arrive(transport: MailboxTransport, key: MessageKey) -> None:
    mailbox, other = (
        transport._mailboxes[key.child],
        Mailbox(transport._mailboxes[key.child].folder / "other", key.child),
    )
    other.send(key, True)
    name = f"{key.round}.{key.subround}.{key.kind}"
    other.path(name).rename(mailbox.arriving(name))
    mailbox.store(name)


def test_what_was_given_up_stays_so(transport: MailboxTransport) -> None:
    keys = [ready("a", 0), ready("b", 0)]
    arrive(transport, keys[0])
    assert transport.receive_all(keys, seconds=0.05, minimum=0) == {"a": True, "b": None}
    arrive(transport, keys[1])
    assert transport.receive_all(keys, seconds=0.05, minimum=0) == {"a": True, "b": None}
    assert transport._mailboxes["b"].is_late("0.0.ready")


def test_an_absent_child_costs_a_deadline_once(transport: MailboxTransport) -> None:
    assert transport.receive_all([ready("b", 0)], seconds=0.2, minimum=0) == {"b": None}
    began = time.monotonic()
    assert transport.receive_all([ready("b", 1)], seconds=60.0, minimum=0) == {"b": None}
    assert time.monotonic() - began < 30.0
    arrive(transport, ready("b", 2))
    assert transport.receive_all([ready("b", 2)], seconds=60.0, minimum=0) == {"b": True}
    assert transport._absent == set()


def test_a_revoked_child_is_not_waited_for(transport: MailboxTransport, caplog: pytest.LogCaptureFixture) -> None:
    keys = [ready("a", 0), ready("revoked", 0)]
    arrive(transport, keys[0])
    assert transport.receive_all(keys, seconds=None, minimum=0) == {"a": True, "revoked": None}
    assert "revoked was revoked and is left out" in caplog.text
