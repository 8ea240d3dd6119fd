"""Messages are stored once, remain until a checkpoint contains their effect, and have only known names."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from worldlm.organisations.mailbox import Mailbox, Stored, read_message
from worldlm.rounds.transport import Kind, MessageKey


def key(round: int = 0, kind: Kind = "up") -> MessageKey:
    return MessageKey(child="a", kind=kind, round=round, subround=0)


def arrive(mailbox: Mailbox, name: str, content: object = True) -> None:
    torch.save(content, mailbox.arriving(name))
    mailbox.store(name)


def test_what_is_sent_again_is_not_stored_again(tmp_path: Path) -> None:
    mailbox = Mailbox(tmp_path, "a")
    mailbox.send(key(), 1)
    mailbox.send(key(), 2)
    assert read_message(mailbox.path("0.0.up")) == 1
    mailbox.mark_delivered("0.0.up")
    mailbox.send(key(), 3)
    assert mailbox.undelivered() == []


def test_the_digest_of_a_message_is_known_after_a_restart_too(tmp_path: Path) -> None:
    mailbox = Mailbox(tmp_path, "a")
    mailbox.send(key(), 1)
    digest = hashlib.sha256(mailbox.path("0.0.up").read_bytes()).hexdigest()
    assert mailbox.digest("0.0.up") == Mailbox(tmp_path, "a").digest("0.0.up") == digest


def test_tensors_outlive_the_file_of_their_message(tmp_path: Path) -> None:
    mailbox, sent = Mailbox(tmp_path, "a"), {"weight": torch.arange(1e6)}
    arrive(mailbox, "0.0.down", sent)
    received = mailbox.received(key(kind="down"))
    assert received is not None
    content = read_message(received)
    mailbox.forget(1)
    assert mailbox.received(key(kind="down")) is None
    assert torch.equal(content["weight"], sent["weight"])


def test_messages_are_sent_in_the_order_of_their_rounds(tmp_path: Path) -> None:
    mailbox = Mailbox(tmp_path, "a")
    for round in (10, 9, 0):
        mailbox.send(key(round), None)
    assert mailbox.undelivered() == ["0.0.up", "9.0.up", "10.0.up"]


def test_messages_of_finished_rounds_are_deleted_when_they_are_delivered(tmp_path: Path) -> None:
    mailbox = Mailbox(tmp_path, "a")
    for round in (0, 1):
        mailbox.send(key(round), None)
        arrive(mailbox, f"{round}.0.down")
    mailbox.mark_delivered("0.0.up")
    mailbox.forget(1)
    assert mailbox.received(key(0, "down")) is None
    assert mailbox.received(key(1, "down")) is not None
    mailbox.send(key(2), None)
    mailbox.forget(3)
    assert mailbox.undelivered() == ["1.0.up", "2.0.up"]
    for name in mailbox.undelivered():
        mailbox.mark_delivered(name)
    assert [path for path in tmp_path.glob("*/*") if path.is_file()] == []


def test_what_was_received_before_is_not_expected(tmp_path: Path) -> None:
    mailbox = Mailbox(tmp_path, "a")
    assert mailbox.expects("0.0.up")
    arrive(mailbox, "0.0.up", 1)
    assert not mailbox.expects("0.0.up")
    arrive(mailbox, "0.0.up", 2)
    path = mailbox.received(key())
    assert path is not None
    assert read_message(path) == 1
    mailbox.forget(1)
    assert not Mailbox(tmp_path, "a").expects("0.0.up"), "its effect is in a checkpoint"
    assert mailbox.expects("1.0.up")


@pytest.mark.parametrize(
    "name", ["", "0.0", "../0.0.up", "0.0.up/x", "0.0.sideways", "-1.0.up", "0.0.up\n", "٣.0.up", "00.0.up"]
)
def test_other_names_are_rejected(name: str, tmp_path: Path) -> None:
    mailbox = Mailbox(tmp_path, "a")
    with pytest.raises(ValueError, match="no message has the name"):
        mailbox.expects(name)
    mailbox.mark_delivered(name)


def test_what_the_other_node_lost_is_delivered_again(tmp_path: Path) -> None:
    mailbox, other = Mailbox(tmp_path / "here", "a"), Mailbox(tmp_path / "there", "a")
    for round in (0, 1):
        mailbox.send(key(round, "down"), round)
        mailbox.mark_delivered(f"{round}.0.down")
    arrive(other, "1.0.down", 1)
    mailbox.redeliver(Stored.parse(other.stored().plain()))
    assert mailbox.undelivered() == ["0.0.down"]
    assert not mailbox.has_lost(other.stored(), "down")
    mailbox.mark_delivered("0.0.down")
    mailbox.forget(1)
    assert mailbox.has_lost(other.stored(), "down")
    other.forget(1)
    assert not mailbox.has_lost(other.stored(), "down")
    mailbox.forget(2)
    assert not mailbox.has_lost(other.stored(), "down"), "it has received what it needs"


@pytest.mark.parametrize("content", [None, {}, {"num_rounds": "1", "received": []}, {"num_rounds": 1, "received": [1]}])
def test_what_does_not_say_which_messages_it_has(content: object) -> None:
    with pytest.raises(ValueError, match="does not say which messages"):
        Stored.parse(content)


def test_a_mailbox_cannot_be_filled(tmp_path: Path) -> None:
    mailbox = Mailbox(tmp_path, "a")
    for round in range(200):
        arrive(mailbox, f"{round}.0.up")
    with pytest.raises(ValueError, match="200 messages wait already"):
        mailbox.expects("200.0.up")


def test_nothing_in_a_message_is_executed(tmp_path: Path) -> None:
    torch.save({"a": Path("x")}, tmp_path / "message")
    with pytest.raises(ValueError, match="cannot be read as a message"):
        read_message(tmp_path / "message")
    (tmp_path / "message").write_bytes(b"not a message")
    with pytest.raises(ValueError, match="cannot be read as a message"):
        read_message(tmp_path / "message")
