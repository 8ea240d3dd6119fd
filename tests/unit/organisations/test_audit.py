"""The record of what a node has sent."""

from __future__ import annotations

import hashlib
import stat
from functools import partial
from pathlib import Path

import pytest

from worldlm.organisations.audit import Audit
from worldlm.organisations.mailbox import Mailbox
from worldlm.rounds.transport import MessageKey


def test_every_message_is_recorded_once(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "sent.jsonl")
    mailbox = Mailbox(tmp_path / "mail", "a", partial(audit.add_message, "world"))
    for round in (0, 1, 1):
        mailbox.send(MessageKey(child="a", kind="up", round=round, subround=0), round)
    entries = list(audit.entries())
    assert [(entry["to"], entry["message"]) for entry in entries] == [("world", "0.0.up"), ("world", "1.0.up")]
    for entry in entries:
        content = mailbox.path(entry["message"]).read_bytes()
        assert entry["bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert stat.S_IMODE(audit.path.stat().st_mode) == 0o600


def test_a_message_cannot_leave_unrecorded(tmp_path: Path) -> None:
    def fail(name: str, size: int, digest: str) -> None:
        raise OSError("no space left on device")

    mailbox = Mailbox(tmp_path / "mail", "a", fail)
    with pytest.raises(OSError, match="no space left"):
        mailbox.send(MessageKey(child="a", kind="up", round=0, subround=0), 1)
    assert mailbox.undelivered() == []


def test_a_line_that_was_cut_is_left_out(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "sent.jsonl")
    assert list(audit.entries()) == []
    audit.add_epsilon(0, {"epsilon": 1.5})
    with audit.path.open("a") as file:
        file.write('{"time": "20')
    assert [entry["epsilon"] for entry in audit.entries()] == [1.5]
