"""Composes the messages of a round at their senders, and checks uploads at their receivers."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from worldlm.federation.admission import why_download_refused, why_refused
from worldlm.federation.messages import Download, Upload
from worldlm.federation.parameters import Part, Tensors
from worldlm.federation.participation import is_dropped, link_seconds
from worldlm.federation.state import NodeState
from worldlm.rounds.context import Context
from worldlm.rounds.method import Method
from worldlm.rounds.world import World
from worldlm.topology import Node

log = logging.getLogger(__name__)


class Composer:
    """Composes downloads and uploads, and decides which uploads may be merged.

    Args:
        world: The nodes.
        method: Its callbacks compose, sanitise, pack and unpack the messages.
    """

    def __init__(self, world: World, method: Method) -> None:
        self.world = world
        self.method = method

    def context(self, name: str, subround: int) -> Context:
        """Return what the hooks of a node receive."""
        return self.method.context(self.world, name, subround)

    def parent(self, node: Node) -> Node:
        """Return the parent of a node that has one."""
        parent = self.world.topology.parent(node.name)
        assert parent is not None, "the root exchanges messages with its children only"
        return parent

    # ------------------------------------------------------------------ downloads

    def download(self, child: Node, subround: int) -> Download | None:
        """Compose and pack what a child's parent sends to it; None if the child does not take part."""
        sender = self.context(self.parent(child).name, subround)
        if not sender.state.takes_part or not (child.listens or child.name in sender.state.participants):
            return None
        download = Download(round=self.world.round, parts=self._parts_sent(sender.state))
        download = self.method.on_download(sender, child, download)
        return self.method.on_send(sender, child, download)

    def _parts_sent(self, state: NodeState) -> Mapping[Part, Tensors]:
        """Return the weights that a federation sends to its children: those from before its own fit."""
        return self._merged_parts(state.parameters if state.start is None else state.start)

    def _merged_parts(self, parameters: Tensors) -> Mapping[Part, Tensors]:
        return NodeState(parameters=parameters).parts(self.method.parts, self.world.partition)

    # ------------------------------------------------------------------ uploads

    def upload(self, context: Context) -> Upload | None:
        """Compose, sanitise and pack what a node sends to its parent; None if it sends nothing."""
        state, download = context.state, context.state.download
        assert download is not None, "a node that takes part has received a download"
        upload = Upload(
            node=context.node.name,
            round=self.world.round,
            parts=self._merged_parts(state.parameters),
            num_tokens=state.unsent_tokens,
        )
        upload = self.method.on_upload(context, upload)
        if self._misses(context, upload):
            state.num_missed += 1
            self.method.on_missed(context, upload)
            return None
        upload = self.method.on_sanitise(context, upload, download)
        upload = self.method.on_send(context, self.parent(context.node), upload)
        state.unsent_tokens = 0
        state.bytes_up += upload.num_bytes
        state.link_seconds += self.seconds(context, upload.num_bytes)
        state.num_messages += 1
        return upload

    def _misses(self, context: Context, upload: Upload) -> bool:
        """Return whether a node sends nothing: it has not trained since its last upload, drops out, or would be late.

        This is decided before the upload is sanitised and packed. An upload that does not leave must not spend privacy
        budget, and must not change the error feedback.
        """
        state, parent = context.state, self.parent(context.node)
        if state.unsent_tokens == 0 or is_dropped(context.node.settings.dropout, context.seed("dropout")):
            return True
        if parent.settings.deadline_seconds is None or self.world.transport.has_real_time:
            return False
        num_bytes = self.method.packed_bytes(context, parent, upload)
        return state.download_seconds + self.seconds(context, num_bytes) > parent.settings.deadline_seconds

    @staticmethod
    def seconds(context: Context, num_bytes: int) -> float:
        """Return the simulated transfer time of a message on the node's link, in seconds."""
        return link_seconds(context.node.settings.link, num_bytes, context.seed("jitter"))

    def may_merge(self, context: Context, download: Download) -> bool:
        """Return whether a node may merge a download. An invalid one is logged, and the node sits the sub-round out."""
        reason = why_download_refused(download, self._merged_parts(context.state.parameters), self.world.round)
        if reason:
            name, parent = context.node.name, self.parent(context.node).name
            log.warning("round %d: %s rejected the download of %s: %s", self.world.round + 1, name, parent, reason)
        return not reason

    # ------------------------------------------------------------------ at the parent

    def accept(self, context: Context, upload: Upload) -> None:
        """Unpack an upload at the parent, and keep it there if it may be merged."""
        unpacked = self.method.on_unpack(context, self.world.topology.nodes[upload.node], upload)
        if self.admits(context, unpacked):
            context.state.uploads[upload.node] = self.world.store.keep_upload(upload.node, unpacked)

    def admits(self, context: Context, upload: Upload) -> bool:
        """Return whether an upload may be merged. A rejected upload is counted, and left out of this sub-round."""
        state, name = context.state, context.node.name
        expected, limit = self._parts_sent(state), context.node.settings.max_update_norm
        reason = why_refused(upload, expected, self.world.round, limit)
        if reason:
            state.refused[upload.node] = state.refused.get(upload.node, 0) + 1
            log.warning("round %d: %s rejected the upload of %s: %s", self.world.round + 1, name, upload.node, reason)
        return not reason

    def own_upload(self, context: Context, trained: Tensors) -> Upload:
        """Return the result of a federation's own fit as an upload, to be merged with those of its children."""
        return Upload(
            node=context.node.name,
            round=self.world.round,
            parts=self._merged_parts(trained),
            num_tokens=context.state.fit_tokens,
        )
