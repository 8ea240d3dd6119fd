"""One round of the world as pseudocode, and the hooks that a part of a method overrides."""

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
    """One part of a federated method. A subclass overrides the hooks that it needs.

    This is one round at a federation with parent q: the root first, then every federation below it in the same way. A
    federation may repeat the round as several sub-rounds. A listener is a child that receives, but never uploads; it
    receives before q trains. A residual is a pair of key and value layers on its way to the root, and its answer comes
    back to the federation of the node that the pair is from::

        for each sub-round of q
        |   OPEN       participates(c)              for every child c that uploads, and for q if it trains
        |              q draws the participants
        |   FIT        q trains, if it has data     (as a leaf does, below)
        |   for each participating child c; children do not see each other's work
        |   |   RECEIVE    on_download(q, c)        q composes its download for c
        |   |              on_send(q, c)            q packs it; its bytes are counted, and it is sent
        |   |              on_unpack(c, q)          c unpacks it
        |   |              on_route(c)              c takes out what it does not merge: the answers
        |   |              on_receive(c)            c merges the download into its own weights
        |   |   if c is a leaf
        |   |   |          on_merged(c)             `NodeMetrics` measures `after_merge` here
        |   |   |   FIT    on_local_fit_start(c)    the live module holds c's weights and optimizer
        |   |   |              Lightning's hooks, on_train_batch_start ... on_train_batch_end, step by step
        |   |   |          on_local_fit_end(c)      `NodeMetrics` measures `after_fit` here
        |   |   else: c runs its own federation, as q does
        |   |   UPLOAD     on_upload(c)             c composes its upload
        |   |              packed_bytes(c, q)       if q has a deadline: would the upload be late?
        |   |              on_missed(c)             only if c trained nothing, drops out or is late: it sends nothing
        |   |              on_sanitise(c)           c makes the upload safe to leave; nothing is added after this
        |   |              on_send(c, q)            c packs it; its bytes are counted, and it is sent
        |   |              on_unpack(q, c)          q unpacks it, and checks that it may be merged
        |   AGGREGATE  on_aggregate(q)              q merges the uploads and its own fit, ordered by name
        |              after_aggregate(q)           q selects the residuals of its next upload
        |              on_merged(q)

    `RoundExecutor` has one method for each of the five words in capitals. Most hooks that receive a message return it,
    changed or unchanged. Messages are frozen: use `dataclasses.replace` to change one. q's own fit takes no message, so
    no hook composes, sanitises or packs it.

    If several processes share a world, the hooks of a node run in the process that holds the node. If q and c are in
    different processes, q's part of RECEIVE runs in OPEN, before q's own fit, and q's part of UPLOAD in AGGREGATE. So
    these hooks must not depend on q's own fit, nor on uploads of other children. Take q's weights from the download. Do
    not read the state of other nodes: for nodes of other processes it has no tensors, and is one round old.

    What a callback needs, and where it is:

    - state of a node: `memory`. It is saved with the node, and `memory_schema` declares its type: plain containers and
      tensors only. A tensor in `memory` or in a message may be on disk until it is read: replace it, do not write
      into it.
    - state of the run: `state_dict` and `load_state_dict`, as in any Lightning callback. Only process 0 saves it, so it
      must not be collected in hooks of a node.
    - state of the running fit: an attribute that `on_local_fit_start` sets unless `fit.resumed`, and that `state_dict`
      saves, as in `Proximal`.
    - random numbers: a generator seeded with `context.seed("purpose")`, never a global one.
    - metrics: `context.log`. Another callback: `context.find`.
    - a place in a recipe, and Lightning's hooks: derive from `worldlm.trainer.FederationCallback`, a subclass of this.
    """

    parts: frozenset[Part] = frozenset()
    """Parts of the model that this callback merges. Messages carry them. Two callbacks cannot merge the same part."""
    enforces: frozenset[str] = frozenset()
    """Names of the topology's settings that this callback enforces. A setting that no callback enforces is an error."""
    memory_schema: Any = dict[str, Any]
    """Type of `memory`, usually a TypedDict. Checkpoints are validated against it before a run resumes."""

    @property
    def state_key(self) -> str:
        """The name under which this callback's memory and state are saved."""
        return type(self).__qualname__

    def memory(self, state: NodeState) -> dict[str, Any]:
        """Return this callback's memory at a node, a dict that it may change."""
        return state.memory.setdefault(self.state_key, {})

    # ------------------------------------------------------------------ before the first round

    def check_method(self, callbacks: Sequence[RoundCallback], topology: Topology) -> None:
        """Check that this callback suits the method and the topology. It is called before training.

        Args:
            callbacks: All callbacks of the method, in the order of the recipe.
            topology: The topology of the run.

        Raises:
            ValueError: If this callback does not suit them.
        """

    def must_follow(self, other: RoundCallback) -> str:
        """Return the reason why this callback must be listed after another one, or an empty string if there is none."""
        return ""

    def on_topology_change(self, world: World, changes: Changes, states: Mapping[str, NodeState]) -> None:
        """Drop what no longer applies when a run resumes with another topology. It is called before the first round.

        `changes.parted` names the children that a node no longer has: drop what this callback keeps under their names.
        The memory of a node that left needs no action. Every process calls this for all nodes, after
        Lightning's `load_state_dict`.

        Args:
            world: The world, with the new topology.
            changes: The changes of the topology.
            states: The states of all nodes by name, including nodes that left.
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

        The returned message is sent, and its bytes are counted. It holds plain values and tensors, and its parts may
        have other names and types. The receiver unpacks it with its own state and the state that all nodes share.
        """
        return message

    def on_unpack(self, context: Context, sender: Node, message: MessageT) -> MessageT:
        """Unpack a message, as the first step at its receiver. Callbacks unpack in the reverse of their order."""
        return message

    def on_route(self, context: Context, download: Download) -> Download:
        """Take from a download what the context's node does not merge, such as answers to residuals from below it."""
        return download

    def on_receive(self, context: Context, download: Download) -> None:
        """Merge the parent's download into the node's weights, in place."""

    def on_merged(self, context: Context) -> None:
        """Observe a leaf before its fit, or a federation after it aggregated.

        A federation whose children all listen has nothing to aggregate, and is observed like a leaf.
        """

    # ------------------------------------------------------------------ FIT

    def on_local_fit_start(self, context: Context, fit: LocalFit) -> None:
        """Prepare a node's training, before its first local step. It is called again if a run resumes within a fit."""

    def on_local_fit_end(self, context: Context) -> None:
        """Observe a node after its last local step."""

    # ------------------------------------------------------------------ UPLOAD

    def on_upload(self, context: Context, upload: Upload) -> Upload:
        """Change what a node sends to its parent, before it is sanitised."""
        return upload

    def packed_bytes(self, context: Context, receiver: Node, message: Upload, num_bytes: int) -> int:
        """Return the bytes that an upload would have after `on_send`. Change no state: the upload may not be sent.

        Args:
            context: The context of the sender.
            receiver: Its parent.
            message: The upload, neither sanitised nor packed.
            num_bytes: Its bytes after the callbacks before this one have packed it.
        """
        return num_bytes

    def on_missed(self, context: Context, upload: Upload) -> None:
        """Handle an upload that does not leave its node: keep what the next upload must contain."""

    def on_sanitise(self, context: Context, upload: Upload, download: Download) -> Upload:
        """Make an upload safe to leave its node: clip it, and add noise.

        `download` is the message that the upload answers, unpacked. The update is `upload.parts - download.parts`. A
        federation's own fit does not pass here; bound it in `on_aggregate`.
        """
        return upload

    # ------------------------------------------------------------------ AGGREGATE

    def on_aggregate(self, context: Context, uploads: list[Upload]) -> None:
        """Merge the participants' uploads into the node's weights, in place.

        At this point the node has the weights that its children received. If the node trains, its own fit is one of the
        uploads, under its own name. Without any upload this hook and the next two are not called.
        """

    def after_aggregate(self, context: Context, uploads: list[Upload]) -> None:
        """Observe a federation after it aggregated, with the uploads of its participants."""

    # ------------------------------------------------------------------ reporting

    def node_figures(self, node: Node, state: NodeState) -> dict[str, float]:
        """Return figures of a node by column of the summary table; results.json has those that it defines.

        Log a figure of your own with `context.log` too, to have its course.
        """
        return {}

    def routes(self, world: World) -> Counter[str]:
        """Count the residuals answered since the run began, by route: "origin > source that the answer attends to"."""
        return Counter()

    def refusals(self, world: World) -> Counter[str]:
        """Count the residuals that a rule of the topology rejected or kept back, by reason."""
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
"""All hooks by name; `Method` checks their signatures."""
