"""The hooks of a round, and the callback that a method's pieces derive from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback

from worldlm.federation.messages import Download, MessageT, Upload
from worldlm.federation.parameters import Part, Tensors
from worldlm.federation.seeds import derive_seed
from worldlm.federation.state import NodeState
from worldlm.topology import Node
from worldlm.topology.changes import Changes

if TYPE_CHECKING:
    from worldlm.rounds.world import World
    from worldlm.trainer.world_trainer import WorldTrainer


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Where in the world, and when, a hook is called."""

    world: World
    """Topology, partition of the parameters, common initial keys and values."""
    node: Node
    """The node that acts."""
    state: NodeState
    """Its weights and counters; hooks that merge write into the weights in place."""
    round: int
    """Round of the world, from 0."""
    subround: int
    """Sub-round, counted from 0 over the round."""

    def seed(self, purpose: str) -> int:
        """Return the seed of a random draw: a pure function of (seed, node, round, sub-round, purpose)."""
        return derive_seed(self.world.seed, self.node.name, self.round, self.subround, purpose)

    def part(self, part: Part) -> Tensors:
        """Return the node's tensors of one part, not copied."""
        return self.state.part(part, self.world.partition)


class FederationCallback(Callback):
    """One piece of a federated method: override the hooks it needs.

    One round, at a federation q (the root first, then every federation below it in the same way)::

        for each sub-round of q
        |   participates(c)                 for q, if it holds data, and for every child c: may it take part?
        |   q fits, if it holds data        (as a child does, below)
        |   for each participating child c, none of which sees what the others do
        |   |   on_download(q, c, download)     q composes what it sends to c
        |   |   on_send(q, c, download)         q packs it; its bytes are counted, and it travels
        |   |   on_unpack(c, q, download)       c unpacks it
        |   |   on_route(c, download)           c takes what is meant for it, passes on what is not
        |   |   on_receive(c, download)         c merges the download into its own weights
        |   |   if c is a leaf
        |   |   |   on_merged(c)                c stands as its federation made it: measure `after_merge` here
        |   |   |   on_local_fit_start(c)       c's weights and optimizer are in place
        |   |   |       Lightning's own hooks, on_train_batch_start ... on_train_batch_end, step by step
        |   |   |   on_local_fit_end(c)         c stands as it trained itself: measure `after_fit` here
        |   |   else: c runs its own federation, as q does
        |   |   on_upload(c, upload)            c composes what it sends
        |   |   packed_bytes(c, q, upload)        where q has a deadline: would c be too late?
        |   |   on_missed(c, upload)              instead of all below, where nothing of c arrives in this sub-round
        |   |   on_sanitise(c, upload, download)    c makes it safe to leave; nothing is added after this
        |   |   on_send(c, q, upload)           c packs it; its bytes are counted, and it travels
        |   |   on_unpack(q, c, upload)         q unpacks it
        |   on_aggregate(q, uploads)            q merges what its participants sent, ordered by name
        |   after_aggregate(q, uploads)                 q decides what it could not absorb, and what climbs on
        |   on_merged(q)

    Lightning's `on_train_epoch_start` and `on_train_epoch_end` are the start and the end of the round. Hooks that are
    handed a message return it, changed or not: messages are frozen, use `dataclasses.replace`.

    Where several processes share a world, the hooks of a node run in the process that holds it, and Lightning's own in
    all of them; `trainer.world.states` then has the nodes of other processes without tensors, as of the last round.

    State that must survive a restart: what belongs to a node goes into `memory`, which is saved with the node and
    follows it; what belongs to the run goes through `state_dict` and `load_state_dict`, as in any Lightning callback.
    Both hold plain containers and tensors only; `kept` declares the first. A tensor in `memory`, or in a message, may
    be on disk until it is read: put another in its place, do not write into it.
    """

    parts: frozenset[Part] = frozenset()
    """Parts of the model that this piece merges, and that therefore travel, down and up. No two may merge one part."""
    enforces: frozenset[str] = frozenset()
    """Names of the topology's settings that this piece obeys. A setting that nobody obeys is an error."""

    memory_schema: Any = dict[str, Any]
    """Type of `memory`, as a rule a TypedDict: what a checkpoint holds is held against it before a run goes on."""

    def memory(self, state: NodeState) -> dict[str, Any]:
        """Return what this piece keeps at a node; write into it."""
        return state.memory.setdefault(self.state_key, {})

    def on_topology_change(self, trainer: WorldTrainer, changes: Changes, states: Mapping[str, NodeState]) -> None:
        """Forget what no longer applies, where a run goes on with another topology; called before its first round.

        `changes.parted` names the children that a node has no more: what it keeps by a child's name goes. What a node
        that left kept itself goes with it. Called in every process for all nodes, after `load_state_dict`.

        Args:
            trainer: Its topology is the new one.
            changes: What changed.
            states: All nodes by name, those that left too.
        """

    def participates(self, trainer: WorldTrainer, context: Context) -> bool:
        """Say whether a node may take part in its federation's next sub-round."""
        return True

    def on_download(self, trainer: WorldTrainer, context: Context, child: Node, download: Download) -> Download:
        """Change what the context's node sends to a child."""
        return download

    def on_send(self, trainer: WorldTrainer, context: Context, receiver: Node, message: MessageT) -> MessageT:
        """Pack a message, last thing at its sender: a download to a child, or an upload to the parent.

        What is returned is what travels, and what is counted. It holds plain values and tensors, in which the parts may
        have other names and types; to unpack it the receiver has that, its own state, and what all nodes know.
        """
        return message

    def packed_bytes(
        self, trainer: WorldTrainer, context: Context, receiver: Node, message: Upload, num_bytes: int
    ) -> int:
        """Tell how many bytes `on_send` would make of an upload, and change nothing: it may be too late to be sent.

        Args:
            trainer: The trainer.
            context: The sender's.
            receiver: Its parent.
            message: The upload, neither sanitised nor packed.
            num_bytes: Its bytes, as the pieces before would have packed it.
        """
        return num_bytes

    def on_unpack(self, trainer: WorldTrainer, context: Context, sender: Node, message: MessageT) -> MessageT:
        """Unpack a message, first thing at its receiver; the pieces do so in the reverse of their order."""
        return message

    def on_route(self, trainer: WorldTrainer, context: Context, download: Download) -> Download:
        """Take residuals out of a download that the context's node passes on instead of using."""
        return download

    def on_receive(self, trainer: WorldTrainer, context: Context, download: Download) -> None:
        """Merge what the parent sent into the node's weights, in place."""

    def on_merged(self, trainer: WorldTrainer, context: Context) -> None:
        """See a leaf before its fit, or a federation after it aggregated."""

    def on_local_fit_start(self, trainer: WorldTrainer, context: Context) -> None:
        """See a node before its first local step; called again when a run resumes within a fit."""

    def on_local_fit_end(self, trainer: WorldTrainer, context: Context) -> None:
        """See a node after its last local step."""

    def on_upload(self, trainer: WorldTrainer, context: Context, upload: Upload) -> Upload:
        """Change what a node sends to its parent, before it is sanitised."""
        return upload

    def on_missed(self, trainer: WorldTrainer, context: Context, upload: Upload) -> None:
        """See an upload that does not leave its node: keep here what is to go with the next one."""

    def on_sanitise(self, trainer: WorldTrainer, context: Context, upload: Upload, download: Download) -> Upload:
        """Make an upload safe to leave its node."""
        return upload

    def on_aggregate(self, trainer: WorldTrainer, context: Context, uploads: list[Upload]) -> None:
        """Merge the participants' uploads into the node's weights, in place.

        The node's weights are those that its children received. Where the node holds data, its own fit is one of the
        uploads, under its own name.
        """

    def after_aggregate(self, trainer: WorldTrainer, context: Context, uploads: list[Upload]) -> None:
        """See a federation after it aggregated, with what its participants sent."""
