"""A durable store for the messages between a node and its parent or one of its children."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from worldlm.federation.type_checks import matches_type
from worldlm.files.atomic_write import atomic_write, sync_folder, write_text
from worldlm.files.tensor_file import read_tensors
from worldlm.rounds.transport import Kind, MessageKey

_NAME = re.compile(r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(ready|down|up|change)")
_FROM_PARENT = (".down", ".change")

_MAX_RECEIVED = 200
"""Messages from another node that wait at a time. A round has three for each sub-round."""

LOST = (
    "{them} needs messages that {us} has deleted, since both had stored them: restore runs and mail of {them} from a "
    "backup, or let all organisations begin again with another --name"
)
"""What to say when two nodes cannot go on together."""


class TooEarly(Exception):
    """A message answers one that was not sent yet. It may be sent again later."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What one end of a mailbox has, so that the other can find out what is missing."""

    num_rounds: int
    """Number of rounds whose effect is in a checkpoint."""
    received: frozenset[str]
    """Names of the messages of later rounds that have arrived."""

    def plain(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"num_rounds": self.num_rounds, "received": sorted(self.received)}

    @classmethod
    def parse(cls, content: Any) -> Stored:
        """Undo `plain`, for content that may be anything.

        Raises:
            ValueError: If it is something else.
        """
        if isinstance(content, dict):
            num_rounds, received = content.get("num_rounds"), content.get("received")
            if type(num_rounds) is int and isinstance(received, list) and matches_type(received, list[str]):
                return cls(num_rounds, frozenset(received))
        raise ValueError("it does not say which messages it has")


class Mailbox:
    """Messages between a node and its parent, or between a node and one of its children.

    Each message is a file, named ROUND.SUBROUND.KIND. It moves from folder to folder:

    - `sent`: composed by this node, not yet stored by the other node;
    - `delivered`: stored by the other node;
    - `arriving`: composed by the other node, not complete here;
    - `received`: composed by the other node, and stored here.

    Both copies remain until the node has saved a checkpoint that contains their effect, see `forget`. A node that was
    restarted repeats the round from its last checkpoint: it finds again what it had received, and what it sends again
    is not stored a second time, so the other node sees each message once.

    Args:
        folder: Of this mailbox.
        child: The child of the two nodes.
        record: Called with the name, the size in bytes and the SHA-256 of each message before it can be sent.
    """

    def __init__(
        self, folder: Path, child: str, record: Callable[[str, int, str], None] = lambda name, size, digest: None
    ) -> None:
        self.folder = folder
        self.child = child
        self._record = record
        self._digests: dict[str, str] = {}
        self._lock = threading.Lock()  # of `received`: the network stores there, and the node gives up
        self.problem = ""
        """Why no message can arrive any more, as far as the network knows."""
        for name in ("sent", "delivered", "arriving", "received"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    @property
    def num_rounds(self) -> int:
        """Number of rounds whose effect is in a checkpoint of this node."""
        path = self.folder / "num_rounds"
        return int(path.read_text()) if path.exists() else 0

    # ------------------------------------------------------------------ the node's side

    def send(self, key: MessageKey, content: Any) -> None:
        """Store a message that this node sends, unless it is stored already.

        Args:
            key: Identifies the message.
            content: Plain containers and tensors that `torch.load(weights_only=True)` can read.
        """
        name = _name(key)
        if self._has_sent(name):
            return
        with atomic_write(self.folder / "sent" / name) as partial, partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
            self._digests[name] = _sha256(partial)
            self._record(name, partial.stat().st_size, self._digests[name])
        sync_folder(self.folder / "sent")

    def has_begun(self, round: int) -> bool:
        """Return whether this node has sent the first download of a round."""
        return self._has_sent(f"{round}.0.down")

    def _has_sent(self, name: str) -> bool:
        # in this order: the network moves it from the first to the second
        return any((self.folder / folder / name).exists() for folder in ("sent", "delivered"))

    def received(self, key: MessageKey) -> Path | None:
        """Return the file of a message from the other node, or None if it has not arrived."""
        path = self.folder / "received" / _name(key)
        return path if path.exists() else None

    def give_up(self, key: MessageKey) -> None:
        """No longer wait for a message. If it arrives later, it is dropped, also after a restart."""
        with self._lock:
            path = self.folder / "received" / _name(key)
            if not path.exists():
                path.touch()
                sync_folder(self.folder / "received")

    def was_given_up(self, key: MessageKey) -> bool:
        """Return whether a message was given up."""
        return self.is_late(_name(key))

    def forget(self, num_rounds: int) -> None:
        """Delete the messages of finished rounds. Call it after a checkpoint with their effect has been saved.

        A message that the other node has not stored yet remains until it is delivered.

        Args:
            num_rounds: Number of finished rounds in the checkpoint.
        """
        write_text(self.folder / "num_rounds", str(num_rounds), to_disk=True)
        for folder in ("received", "delivered"):
            for name in self._names(folder):
                if _round(name) < num_rounds:
                    (self.folder / folder / name).unlink()

    # ------------------------------------------------------------------ the network's side

    def stored(self) -> Stored:
        """Return what this end has."""
        return Stored(self.num_rounds, frozenset(self._names("received")))

    def redeliver(self, other: Stored) -> None:
        """Deliver again what the other node has lost, if it is still here."""
        for name in self._names("delivered"):
            if _round(name) >= other.num_rounds and name not in other.received:
                (self.folder / "delivered" / name).replace(self.folder / "sent" / name)

    def has_lost(self, other: Stored, kind: Kind) -> bool:
        """Return whether the other node needs messages that neither node has any more.

        Args:
            other: What it has.
            kind: The first kind of message that it needs in a round.
        """
        first = f"{other.num_rounds}.0.{kind}"
        is_past = other.num_rounds < self.num_rounds
        return is_past and first not in other.received and not (self.folder / "sent" / first).exists()

    def has_sent_change(self) -> bool:
        """Return whether a change of the topology is here that the other node may not have made yet."""
        return any(name.endswith(".change") for folder in ("sent", "delivered") for name in self._names(folder))

    def undelivered(self) -> list[str]:
        """Return the names of the messages that the other node has not stored yet, in the order of their rounds."""
        return self._names("sent")

    def path(self, name: str) -> Path:
        """Return the file of an undelivered message."""
        return self.folder / "sent" / name

    def digest(self, name: str) -> str:
        """Return the SHA-256 of an undelivered message. After a restart, it is computed again."""
        return self._digests.get(name) or _sha256(self.path(name))

    def mark_delivered(self, name: str) -> None:
        """Note that the other node has stored a message. Further calls do nothing."""
        if name not in self.undelivered():
            return
        self._digests.pop(name, None)
        path = self.folder / "sent" / name
        if _round(name) < self.num_rounds:
            path.unlink()
        else:
            path.replace(self.folder / "delivered" / name)

    def expects(self, name: str) -> bool:
        """Return whether a message from the other node would be new.

        Raises:
            ValueError: If no message has this name, or too many wait already.
        """
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"no message has the name {name[:50]!r}")
        if _round(name) < self.num_rounds or (self.folder / "received" / name).exists():
            return False
        if len(self._names("received")) >= _MAX_RECEIVED:
            raise ValueError(f"{_MAX_RECEIVED} messages wait already")
        return True

    def expects_from_child(self, name: str) -> bool:
        """As `expects`, at the parent: a child sends everything but downloads and changes.

        Raises:
            TooEarly: If it is an upload, and the child cannot have received the download that it answers.
        """
        if name.endswith(_FROM_PARENT):
            raise ValueError(f"{self.child} sends no message {name[:50]!r}")
        is_new, answered = self.expects(name), f"{name.removesuffix('up')}down"
        if is_new and name.endswith(".up") and not self._has_sent(answered):  # else uploads could fill the disk
            raise TooEarly(f"{self.child} sends {name} before it has received {answered}")
        return is_new

    def expects_from_parent(self, name: str) -> bool:
        """As `expects`, at the child: a parent sends downloads and changes only."""
        if not name.endswith(_FROM_PARENT):
            raise ValueError(f"the parent of {self.child} sends no message {name[:50]!r}")
        return self.expects(name)

    def has_announced(self, name: str) -> bool:
        """Return whether this node, a child, has said that it is ready for a download."""
        return name.endswith(".down") and self._has_sent(f"{name.removesuffix('down')}ready")

    def arriving(self, name: str) -> Path:
        """Return where to write a message from the other node. It is not used before it is stored."""
        return self.folder / "arriving" / name

    def store(self, name: str) -> None:
        """Store a message from the other node, whose file in `arriving` is complete."""
        arriving = self.arriving(name)
        with arriving.open("rb") as file:
            os.fsync(file.fileno())
        with self._lock:
            if self.expects(name):
                arriving.replace(self.folder / "received" / name)
                sync_folder(self.folder / "received")
            else:
                arriving.unlink()

    def is_late(self, name: str) -> bool:
        """Return whether a message was given up before it arrived."""
        path = self.folder / "received" / name
        return path.exists() and path.stat().st_size == 0

    def _names(self, folder: str) -> list[str]:
        names = [name for name in os.listdir(self.folder / folder) if _NAME.fullmatch(name)]
        return sorted(names, key=lambda name: (*map(int, name.split(".")[:2]), name))


def read_message(path: Path) -> Any:
    """Read the content of a message. Its tensors map the file, so that the system can take their memory back.

    Raises:
        ValueError: If it is damaged, or contains anything but tensors and plain values.
    """
    try:
        return read_tensors(path, mapped=True)
    except Exception as error:  # torch.load can raise any exception for such a file
        message = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read as a message: {message}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name(key: MessageKey) -> str:
    return f"{key.round}.{key.subround}.{key.kind}"


def _round(name: str) -> int:
    return int(name.partition(".")[0])
