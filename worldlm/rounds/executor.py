"""The steps of a round in which nodes talk, carried out at the nodes that are held here.

A step sees the state of its own node, and messages. So it makes no difference which process holds a node: a message
between nodes of two processes travels over the transport.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from worldlm.federation.admission import why_refused
from worldlm.federation.messages import (
    Download,
    MessageT,
    Upload,
    download_from_state,
    message_state,
    upload_from_state,
)
from worldlm.federation.parameters import clone
from worldlm.federation.participation import draw_children, is_dropped, link_seconds
from worldlm.federation.state import NodeState
from worldlm.rounds.callback import Context
from worldlm.rounds.program import Step
from worldlm.topology import Node

if TYPE_CHECKING:
    from worldlm.rounds.world import World

log = logging.getLogger(__name__)


class TooFewParticipants(ValueError):
    """A federation asks for more participants in a sub-round than are left."""


class Steps:
    """Carries out a round's steps, but for the fits.

    Args:
        world: The nodes.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.transport = world.transport
        self._places = {step: place for place, step in enumerate(world.program)}
        self._began = 0  # the step at which this process entered the round

    def takes_part(self, step: Step) -> bool:
        """Whether a step of the program happens: the node, and with it all federations above it, take part."""
        state, node = self.world.states[step.node], self.world.topology.nodes[step.node]
        if step.kind == "fit" and (node.children or step.node == self.world.topology.root.name):
            return state.takes_part and step.node in state.participants
        return state.takes_part or step.kind == "receive"  # which is where a node learns whether it does

    def begin(self, cursor: int) -> None:
        """Enter a round at a step of the program: say to other processes what the steps before it would have said."""
        self._began = cursor
        for step, place in self._places.items():
            child = self.world.topology.nodes[step.node]
            if step.kind != "receive" or not self.transport.crosses_processes(child.name):
                continue
            opened = self._places[Step("open", self._parent(child).name, step.subround)]
            if self.transport.is_local(child.name):
                uploaded = self._places.get(Step("upload", child.name, step.subround - 1), -1)
                if uploaded < cursor <= opened:
                    self._announce(child, step.subround)
            elif self.transport.is_local(self._parent(child).name) and opened < cursor <= place:
                self._send_down(child, step.subround)

    def _parent(self, node: Node) -> Node:
        parent = self.world.topology.parent(node.name)
        assert parent is not None, "the root talks to nobody above it"
        return parent

    def run(self, step: Step) -> None:
        """Carry out one step in which nodes talk, at a node that is held here."""
        context, happens = self.world.context(step.node, step.subround), self.takes_part(step)
        if step.kind == "open":
            self._open(context, happens)
        elif step.kind == "receive":
            self._receive(context)
        elif happens and step.kind == "aggregate":
            self._aggregate(context)
        elif step.kind == "upload":
            if happens:
                self._upload(context)
            self._announce(context.node, step.subround + 1)

    # ------------------------------------------------------------------ one step

    def _open(self, context: Context, happens: bool) -> None:
        node, subround = context.node, context.subround
        children = sorted(child.name for child in node.children if not child.listens)
        names = [name for name in children if self._is_ready(name, subround, happens)]
        if happens:
            self._choose(context, names)
            if node.fits and children:
                context.state.start = clone(context.state.parameters)  # its own fit must not reach its children
        for child in node.children:
            if self.transport.crosses_processes(child.name):
                self._send_down(child, subround)

    def _choose(self, context: Context, able: list[str]) -> None:
        """Draw the participants of a sub-round among the children that may take part."""
        node = context.node
        names = draw_children(node, able, context.seed("participation"))
        if node.fits and self._may_take_part(node.name, context.subround):
            names.append(node.name)
        context.state.participants = tuple(names)

    def _is_ready(self, child: str, subround: int, happens: bool) -> bool:
        if self.transport.crosses_processes(child):  # who has sent it, whether it is wanted or not
            return bool(self.transport.receive(child, "ready"))
        return happens and self._may_take_part(child, subround)

    def _may_take_part(self, name: str, subround: int) -> bool:
        context = self.world.context(name, subround)
        return all(callback.participates(self.world.trainer, context) for callback in self.world.callbacks)

    def _announce(self, child: Node, subround: int) -> None:
        """Say to a parent elsewhere whether a child may take part in its next sub-round of this round."""
        if child.listens or not self.transport.crosses_processes(child.name):
            return
        if Step("open", self._parent(child).name, subround) in self._places:
            self.transport.send(child.name, "ready", self._may_take_part(child.name, subround))

    def _send_down(self, child: Node, subround: int) -> None:
        """Send a child elsewhere its download, or that there is none."""
        download = self._compose(child, subround)
        self.transport.send(child.name, "down", None if download is None else message_state(download))

    def _receive(self, context: Context) -> None:
        node, state = context.node, context.state
        if self.transport.crosses_processes(node.name):
            sent = self.transport.receive(node.name, "down")
            download = None if sent is None else download_from_state(self.world.store.hold(sent))
        else:
            download = self._compose(node, context.subround)
        state.takes_part = download is not None
        if download is None:
            return
        self.world.store.bring(node.name)
        state.bytes_down += download.num_bytes
        state.download_seconds = self._seconds(context, download.num_bytes)
        state.link_seconds += state.download_seconds
        state.num_messages += 1
        download = state.download = self._arrive(context, self._parent(node), download)
        for callback in self.world.callbacks:
            download = callback.on_route(self.world.trainer, context, download)
        for callback in self.world.callbacks:
            callback.on_receive(self.world.trainer, context, download)
        if node.listens:
            state.download = None  # it sends nothing back
        if all(child.listens for child in node.children):
            self.world.merged(context)

    def _compose(self, child: Node, subround: int) -> Download | None:
        """Write what a child's parent sends to it; None where the child takes no part."""
        sender = self.world.context(self._parent(child).name, subround)
        state = sender.state
        if not state.takes_part or not (child.listens or child.name in state.participants):
            return None
        start = NodeState(parameters=state.parameters if state.start is None else state.start)
        download = Download(round=self.world.round, parts=start.parts(self.world.parts, self.world.partition))
        for callback in self.world.callbacks:
            download = callback.on_download(self.world.trainer, sender, child, download)
        return self._send(sender, child, download)

    def _send(self, context: Context, receiver: Node, message: MessageT) -> MessageT:
        for callback in self.world.callbacks:
            message = callback.on_send(self.world.trainer, context, receiver, message)
        return message

    def _arrive(self, context: Context, sender: Node, message: MessageT) -> MessageT:
        for callback in reversed(self.world.callbacks):
            message = callback.on_unpack(self.world.trainer, context, sender, message)
        return message

    def _upload(self, context: Context) -> None:
        upload = self._compose_upload(context)
        if self.transport.crosses_processes(context.node.name):  # where it is waited for
            self.transport.send(context.node.name, "up", None if upload is None else message_state(upload))
        elif upload is not None:
            self._take(self.world.context(self._parent(context.node).name, context.subround), upload)
        context.state.download = None  # answered, or missed

    def _take(self, context: Context, upload: Upload) -> None:
        """Keep an upload at the node that it was sent to, if it is fit to be merged."""
        arrived = self._arrive(context, self.world.topology.nodes[upload.node], upload)
        if self._admits(context, arrived):
            context.state.uploads[upload.node] = self.world.store.send(upload.node, arrived)

    def _admits(self, context: Context, upload: Upload) -> bool:
        """Look an upload over; one that is refused is left out of this sub-round."""
        state, name = context.state, context.node.name
        start = NodeState(parameters=state.parameters if state.start is None else state.start)
        expected = start.parts(self.world.parts, self.world.partition)
        wrong = why_refused(upload, expected, self.world.round, context.node.settings.max_update_norm)
        if wrong:
            state.refused[upload.node] = state.refused.get(upload.node, 0) + 1
            log.warning("round %d: %s refused the upload of %s: %s", self.world.round, name, upload.node, wrong)
        return not wrong

    def _compose_upload(self, context: Context) -> Upload | None:
        """Write what a node sends to its parent; None where nothing of it arrives in this sub-round."""
        state, download = context.state, context.state.download
        assert download is not None, "who takes part was sent something"
        upload = Upload(
            node=context.node.name,
            round=self.world.round,
            parts=state.parts(self.world.parts, self.world.partition),
            num_tokens=state.unsent_tokens,
        )
        for callback in self.world.callbacks:
            upload = callback.on_upload(self.world.trainer, context, upload)
        if self._misses(context, upload):
            state.num_missed += 1
            for callback in self.world.callbacks:
                callback.on_missed(self.world.trainer, context, upload)
            return None
        for callback in self.world.callbacks:
            upload = callback.on_sanitise(self.world.trainer, context, upload, download)
        upload = self._send(context, self._parent(context.node), upload)
        state.unsent_tokens = 0
        state.bytes_up += upload.num_bytes
        state.link_seconds += self._seconds(context, upload.num_bytes)
        state.num_messages += 1
        return upload

    def _misses(self, context: Context, upload: Upload) -> bool:
        """Whether a node sends nothing: it has learnt nothing since it last did, drops out, or would be too late.

        Asked before the upload is sanitised and packed: what does not leave spends no privacy and no error feedback.
        """
        state, parent = context.state, self._parent(context.node)
        if state.unsent_tokens == 0 or is_dropped(context.node.settings.dropout, context.seed("dropout")):
            return True
        if parent.settings.deadline_seconds is None:
            return False
        num_bytes = upload.num_bytes
        for callback in self.world.callbacks:
            num_bytes = callback.packed_bytes(self.world.trainer, context, parent, upload, num_bytes)
        return state.download_seconds + self._seconds(context, num_bytes) > parent.settings.deadline_seconds

    @staticmethod
    def _seconds(context: Context, num_bytes: int) -> float:
        return link_seconds(context.node.settings.link, num_bytes, context.seed("jitter"))

    def _aggregate(self, context: Context) -> None:
        name, state = context.node.name, context.state
        for child in (
            child for child in state.participants if self.transport.crosses_processes(child) and child != name
        ):
            if self._places[Step("upload", child, context.subround)] < self._began:
                continue  # done before the run was taken up here
            if (sent := self.transport.receive(child, "up")) is not None:
                self._take(context, upload_from_state(self.world.store.hold(sent)))
        uploads, state.uploads = [*state.uploads.values()], {}
        self.world.store.bring(name)
        state.unsent_tokens += sum(upload.num_tokens for upload in uploads)
        if state.start is not None:
            own, state.parameters, state.start = state.parameters, state.start, None
            if name in state.participants:
                parts = NodeState(parameters=own).parts(self.world.parts, self.world.partition)
                upload = Upload(node=name, round=self.world.round, parts=parts, num_tokens=state.fit_tokens)
                uploads += [upload] if self._admits(context, upload) else []
        if len(uploads) < (least := context.node.settings.min_participants):
            raise TooFewParticipants(
                f"round {self.world.round}: {len(uploads)} participants of {name} are left "
                f"({', '.join(upload.node for upload in uploads) or 'none'}), and its min_participants is {least}"
            )
        if not uploads:
            log.warning("round %d: nobody took part in %s, its model stays as it is", self.world.round, name)
            return
        uploads.sort(key=lambda one: one.node)
        for callback in self.world.callbacks:
            callback.on_aggregate(self.world.trainer, context, uploads)
        for callback in self.world.callbacks:
            callback.after_aggregate(self.world.trainer, context, uploads)
        self.world.merged(context)
