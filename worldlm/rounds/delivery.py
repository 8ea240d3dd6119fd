"""Delivers messages: directly within a process, over the transport between processes.

All processes run the same program of a round. Each carries out the steps of the nodes that it holds. A sender sends a
message to another process as soon as it is composed, and does not wait. The receiver waits for it. In the program,
every message is sent before it is waited for, so that no process waits for ever.
"""

from __future__ import annotations

from collections.abc import Sequence

from worldlm.federation.messages import Download, Upload, download_from_state, message_state, upload_from_state
from worldlm.rounds.composer import Composer
from worldlm.rounds.context import Context
from worldlm.rounds.program import Step
from worldlm.rounds.transport import Kind, MessageKey
from worldlm.topology import Node


class Delivery:
    """Delivers messages to their receivers.

    Args:
        composer: Composes the messages.
        program: One round of the world.
    """

    def __init__(self, composer: Composer, program: Sequence[Step]) -> None:
        self.composer = composer
        self.world = composer.world
        self.transport = composer.world.transport
        self._positions = {step: position for position, step in enumerate(program)}
        self._entered_at = 0

    def enter(self, cursor: int) -> None:
        """Enter a round at a step of the program, and send what its earlier steps would have sent to other processes.

        At the first step, that is each child's message to its parent's process that it is ready to receive.
        """
        self._entered_at = cursor
        for step, position in self._positions.items():
            child = self.world.topology.nodes[step.node]
            if step.kind != "receive" or not self.transport.crosses_processes(child.name):
                continue
            parent = self.composer.parent(child)
            opened = self._positions[Step("open", parent.name, step.subround)]
            if self.transport.is_local(child.name):
                uploaded = self._positions.get(Step("upload", child.name, step.subround - 1), -1)
                if uploaded < cursor <= opened:
                    self.announce(child, step.subround)
            elif self.transport.is_local(parent.name) and opened < cursor <= position:
                self._send_download(child, step.subround)

    def _key(self, child: str, kind: Kind, subround: int) -> MessageKey:
        return MessageKey(child=child, kind=kind, round=self.world.round, subround=subround)

    # ------------------------------------------------------------------ readiness

    def announce(self, child: Node, subround: int) -> None:
        """If a child's parent is in another process, send whether the child may take part in the next sub-round."""
        if child.listens or not self.transport.crosses_processes(child.name):
            return
        if Step("open", self.composer.parent(child).name, subround) in self._positions:
            self.transport.send(self._key(child.name, "ready", subround), self.may_take_part(child.name, subround))

    def ready_children(self, parent: Context, children: Sequence[str], takes_part: bool) -> list[str]:
        """Return, at the parent, which of its children may take part.

        Args:
            parent: The federation.
            children: Those that upload.
            takes_part: Whether the federation takes part itself.
        """
        settings = parent.node.settings
        # receive them even if the federation does not take part: they were sent
        keys = [self._key(name, "ready", parent.subround) for name in children if self._is_elsewhere(name)]
        own = parent.node.fits and self.composer.method.participates(parent)  # it is a participant itself
        minimum = settings.min_participants - own if takes_part else 0
        elsewhere = self.transport.receive_all(keys, settings.deadline_seconds, minimum)
        ready = {name: bool(content) for name, content in elsewhere.items()}
        ready |= {
            name: takes_part and self.may_take_part(name, parent.subround)
            for name in children
            if not self._is_elsewhere(name)
        }
        return [name for name in children if ready.get(name)]

    def _is_elsewhere(self, child: str) -> bool:
        return self.transport.crosses_processes(child)

    def may_take_part(self, name: str, subround: int) -> bool:
        """Return whether the callbacks let a node of this process take part."""
        return self.composer.method.participates(self.composer.context(name, subround))

    # ------------------------------------------------------------------ downloads

    def send_downloads(self, parent: Node, subround: int) -> None:
        """Send downloads to the children that other processes hold."""
        for child in parent.children:
            if self.transport.crosses_processes(child.name):
                self._send_download(child, subround)

    def _send_download(self, child: Node, subround: int) -> None:
        download = self.composer.download(child, subround)
        content = None if download is None else message_state(download)
        self.transport.send(self._key(child.name, "down", subround), content)

    def download_for(self, child: Node, subround: int) -> Download | None:
        """Return, at the child, what its parent sends to it; None if the child does not take part."""
        if not self.transport.crosses_processes(child.name):
            return self.composer.download(child, subround)
        content = self.transport.receive(self._key(child.name, "down", subround))
        return None if content is None else download_from_state(self.world.store.to_storage(content))

    # ------------------------------------------------------------------ uploads

    def deliver(self, sender: Context, upload: Upload | None) -> None:
        """Deliver an upload to the sender's parent. An upload of None means that the sender sends nothing."""
        name = sender.node.name
        if self.transport.crosses_processes(name):  # also send None, because the parent waits for a message
            key = self._key(name, "up", sender.subround)
            self.transport.send(key, None if upload is None else message_state(upload))
        elif upload is not None:
            parent = self.composer.parent(sender.node)
            self.composer.accept(self.composer.context(parent.name, sender.subround), upload)

    def collect_uploads(self, parent: Context) -> None:
        """Receive, at the parent, the uploads of participants that other processes hold."""
        own, settings = parent.node.name, parent.node.settings
        elsewhere = [name for name in parent.state.participants if name != own and self._is_elsewhere(name)]
        # a run that resumes may have received some of them before
        missing = [n for n in elsewhere if self._positions[Step("upload", n, parent.subround)] >= self._entered_at]
        keys = [self._key(name, "up", parent.subround) for name in missing]
        others = len(parent.state.participants) - len(missing)
        received = self.transport.receive_all(keys, settings.deadline_seconds, settings.min_participants - others)
        for name in missing:
            content = received.pop(name, None)  # if nodes are on disk, only one upload at a time is in memory
            if content is not None:
                self.composer.accept(parent, upload_from_state(self.world.store.to_storage(content)))
