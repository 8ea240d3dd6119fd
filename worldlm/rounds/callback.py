"""The hooks of a round, and the class that the parts of a method derive from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from worldlm.federation.messages import Download, MessageT, Upload
from worldlm.federation.parameters import Part
from worldlm.federation.state import NodeState
from worldlm.rounds.context import Context, LocalFit
from worldlm.rounds.world import World
from worldlm.topology import Node, Topology
from worldlm.topology.changes import Changes


class RoundCallback:
    """One part of a federated method. Override the hooks that it needs.

    One round, at a federation with parent q (the root first, then every federation below it in the same way)::

        for each sub-round of q
        |   OPEN       participates(c)                for every child c, and for q if it holds data
        |              q draws the participants
        |   FIT        q trains, if it holds data     (as a leaf does, below)
        |   for each participating child c; children do not see each other's work
        |   |   RECEIVE    on_download(q, c)          q composes its download for c
        |   |              on_send(q, c)              q packs it; its bytes are counted, and it travels
        |   |              on_unpack(c, q)            c unpacks it
        |   |              on_route(c)                c takes the residuals meant for it, and passes on the others
        |   |              on_receive(c)              c merges the download into its own weights
        |   |   if c is a leaf
        |   |   |          on_merged(c)               `after_merge` is measured here
        |   |   |   FIT    on_local_fit_start(c)      the live module holds c's weights and optimizer
        |   |   |              Lightning's hooks, on_train_batch_start ... on_train_batch_end, step by step
        |   |   |          on_local_fit_end(c)        `after_fit` is measured here
        |   |   else: c runs its own federation, as q does
        |   |   UPLOAD     on_upload(c)               c composes its upload
        |   |              packed_bytes(c, q)         if q has a deadline: would the upload be late?
        |   |              on_missed(c)               if nothing of c arrives in this sub-round: c skips the lines below
        |   |              on_sanitise(c)             c makes the upload safe to leave; nothing is added after this
        |   |              on_send(c, q)              c packs it; its bytes are counted, and it travels
        |   |              on_unpack(q, c)            q unpacks it, and checks that it may be merged
        |   AGGREGATE  on_aggregate(q)                q merges the uploads of its participants, ordered by name
        |              after_aggregate(q)             q selects the residuals that it could not absorb
        |              on_merged(q)

    `RoundExecutor` has one method for each of the five words in capitals. Hooks that receive a message return it,
    changed or not: messages are frozen, use `dataclasses.replace`.

    Where several processes share a world, the hooks of a node run in the process that holds it.

    State that must survive a restart: what belongs to a node goes into `memory`, which is saved with the node and
    follows it; `memory_schema` declares its type. It holds plain containers and tensors only. A tensor in `memory`, or
    in a message, may be on disk until it is read: replace it, do not write into it.
    """

    parts: frozenset[Part] = frozenset()
    """Parts of the model that this callback merges, and that therefore travel. Two callbacks cannot merge one part."""
    enforces: frozenset[str] = frozenset()
    """Names of the topology's settings that this callback enforces. A setting that nobody enforces is an error."""
    memory_schema: Any = dict[str, Any]
    """Type of `memory`, usually a TypedDict. A checkpoint is validated against it before a run resumes."""

    @property
    def state_key(self) -> str:
        """The name under which this callback's memory and state are saved."""
        return type(self).__qualname__

    def memory(self, state: NodeState) -> dict[str, Any]:
        """Return what this callback keeps at a node; write into it."""
        return state.memory.setdefault(self.state_key, {})

    # ------------------------------------------------------------------ before the first round

    def check_method(self, callbacks: Sequence[RoundCallback], topology: Topology) -> None:
        """Check that this callback suits the method and the topology; called before training.

        Args:
            callbacks: All callbacks of the method, in the order of the recipe.
            topology: The run's.

        Raises:
            ValueError: If it does not.
        """

    def must_follow(self, other: RoundCallback) -> str:
        """Return why this callback must be listed after another one, or an empty string if it need not."""
        return ""

    def on_topology_change(self, world: World, changes: Changes, states: Mapping[str, NodeState]) -> None:
        """Drop what no longer applies when a run resumes with another topology; called before its first round.

        `changes.parted` names the children that a node no longer has: drop what is kept under a child's name. What a
        node that left kept itself goes with it. Every process calls this for all nodes, after `load_state_dict`.

        Args:
            world: The world; its topology is the new one.
            changes: What changed.
            states: All nodes by name, including those that left.
        """

    # ------------------------------------------------------------------ OPEN

    def participates(self, context: Context) -> bool:
        """Return whether a node may take part in the next sub-round of its federation."""
        return True

    # ------------------------------------------------------------------ RECEIVE

    def on_download(self, context: Context, child: Node, download: Download) -> Download:
        """Change what the context's node sends to a child."""
        return download

    def on_send(self, context: Context, receiver: Node, message: MessageT) -> MessageT:
        """Pack a message, as the last step at its sender: a download to a child, or an upload to the parent.

        The returned message is what travels, and what is counted. It holds plain values and tensors, and its parts may
        have other names and types. To unpack it the receiver has the message, its own state, and what all nodes share.
        """
        return message

    def on_unpack(self, context: Context, sender: Node, message: MessageT) -> MessageT:
        """Unpack a message, as the first step at its receiver; callbacks unpack in the reverse of their order."""
        return message

    def on_route(self, context: Context, download: Download) -> Download:
        """Remove residuals from a download that the context's node passes on instead of using."""
        return download

    def on_receive(self, context: Context, download: Download) -> None:
        """Merge what the parent sent into the node's weights, in place."""

    def on_merged(self, context: Context) -> None:
        """Observe a leaf before its fit, or a federation after it aggregated."""

    # ------------------------------------------------------------------ FIT

    def on_local_fit_start(self, context: Context, fit: LocalFit) -> None:
        """Prepare the training of a node, before its first local step; called again when a run resumes within a fit."""

    def on_local_fit_end(self, context: Context) -> None:
        """Observe a node after its last local step."""

    # ------------------------------------------------------------------ UPLOAD

    def on_upload(self, context: Context, upload: Upload) -> Upload:
        """Change what a node sends to its parent, before it is sanitised."""
        return upload

    def packed_bytes(self, context: Context, receiver: Node, message: Upload, num_bytes: int) -> int:
        """Return how many bytes `on_send` would make of an upload, and change nothing: it may be too late to be sent.

        Args:
            context: The sender's.
            receiver: Its parent.
            message: The upload, neither sanitised nor packed.
            num_bytes: Its bytes, as the callbacks before this one would pack it.
        """
        return num_bytes

    def on_missed(self, context: Context, upload: Upload) -> None:
        """Handle an upload that does not leave its node: keep what must go with the next one."""

    def on_sanitise(self, context: Context, upload: Upload, download: Download) -> Upload:
        """Make an upload safe to leave its node."""
        return upload

    # ------------------------------------------------------------------ AGGREGATE

    def on_aggregate(self, context: Context, uploads: list[Upload]) -> None:
        """Merge the participants' uploads into the node's weights, in place.

        The node's weights are those that its children received. Where the node holds data, its own fit is one of the
        uploads, under its own name.
        """

    def after_aggregate(self, context: Context, uploads: list[Upload]) -> None:
        """Observe a federation after it aggregated, with the uploads of its participants."""

    # ------------------------------------------------------------------ reporting

    def node_figures(self, node: Node, state: NodeState) -> dict[str, float]:
        """Return figures of a node for the closing table and results.json, by column."""
        return {}

    def routes(self, world: World) -> Counter[str]:
        """Count how often a residual was delivered, as "origin > home", since the run began."""
        return Counter()

    def refusals(self, world: World) -> Counter[str]:
        """Count how often a rule of the topology rejected a residual, by reason."""
        return Counter()


HOOKS = (
    "on_topology_change",
    "participates",
    "on_download",
    "on_send",
    "on_unpack",
    "on_route",
    "on_receive",
    "on_merged",
    "on_local_fit_start",
    "on_local_fit_end",
    "on_upload",
    "packed_bytes",
    "on_missed",
    "on_sanitise",
    "on_aggregate",
    "after_aggregate",
)
"""All hooks of a round, by name."""
