"""Carries out one round of the world, step by step.

`RoundExecutor` has one method for each kind of step: open, receive, fit, upload, aggregate. They follow the pseudocode
in `RoundCallback`. If several processes share a world, all of them go through the same program, and each carries out
the steps of the nodes that it holds. `Delivery` brings messages to other processes, and explains why no process waits
for ever. Processes that train one node together form a team, and each of them does the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from worldlm.federation.messages import Upload
from worldlm.federation.parameters import clone
from worldlm.federation.participation import draw_children
from worldlm.rounds.composer import Composer
from worldlm.rounds.context import Context
from worldlm.rounds.delivery import Delivery
from worldlm.rounds.method import Method
from worldlm.rounds.program import Step, compile_round
from worldlm.rounds.world import World

log = logging.getLogger(__name__)


class TooFewParticipants(ValueError):
    """A federation has fewer participants left in a sub-round than its `min_participants`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitCounts:
    """The tokens, batches and optimizer steps of one fit."""

    num_tokens: int
    num_batches: int = 0
    num_steps: int = 0


class RoundExecutor:
    """Carries out the rounds of a world for the nodes that this process holds.

    Args:
        world: The nodes.
        method: The callbacks.
    """

    def __init__(self, world: World, method: Method) -> None:
        self.world = world
        self.method = method
        self.program = compile_round(world.topology)
        self._composer = Composer(world, method)  # composes and checks messages, by the method's hooks
        self._delivery = Delivery(self._composer, self.program)  # brings them to their receivers

    def enter(self, cursor: int) -> None:
        """Enter a round at a step of the program. Call it once, before the first step of every round.

        Other processes wait for what it sends: which children may take part, and, if a run resumes within a round, what
        the steps before the cursor would have sent.
        """
        self._delivery.enter(cursor)

    def run(self, step: Step, train: Callable[[Context], FitCounts]) -> None:
        """Carry out one step, if this process holds its node and the node takes part.

        Args:
            step: The step.
            train: Trains a node in place.
        """
        if not self.world.transport.is_local(step.node):
            return
        context, takes_part = self.method.context(self.world, step.node, step.subround), self._takes_part(step)
        # open and upload run in any case: other processes wait for "no download", and for who may take part next
        if step.kind == "open":
            self._open(context, takes_part)
        elif step.kind == "receive":
            self._receive(context)
        elif step.kind == "fit" and takes_part:
            self._fit(context, train)
        elif step.kind == "upload":
            self._upload(context, takes_part)
        elif step.kind == "aggregate" and takes_part:
            self._aggregate(context)

    def _takes_part(self, step: Step) -> bool:
        """Return whether a step's node takes part.

        A node takes part if its parent sent it a download, which a parent that takes no part itself does not do. To
        train, a node that opens a federation must also be one of its own participants.
        """
        node, state = self.world.topology.nodes[step.node], self.world.states[step.node]
        opens_federation = node.children or step.node == self.world.topology.root.name
        if step.kind == "fit" and opens_federation:
            return state.takes_part and step.node in state.participants
        return state.takes_part

    # ------------------------------------------------------------------ the steps of a round

    def _open(self, context: Context, takes_part: bool) -> None:
        """The parent draws the participants of a sub-round, and fixes the weights that it will send."""
        node, state = context.node, context.state
        children = sorted(child.name for child in node.children if not child.listens)
        ready = self._delivery.ready_children(context, children, takes_part)
        if takes_part:
            participants = draw_children(
                node, ready, context.seed("participation"), context.secret_draws("participation")
            )
            if node.fits and self.method.participates(context):
                participants.append(node.name)
            state.participants = tuple(participants)
            if node.fits and children:
                state.start = clone(state.parameters)  # its children receive the weights from before its own fit
        self._delivery.send_downloads(node, context.subround)

    def _receive(self, context: Context) -> None:
        """A child receives its download, and merges it into its weights."""
        node, state = context.node, context.state
        download = self._delivery.download_for(node, context.subround)
        state.takes_part = download is not None
        if download is None:
            return
        self.world.store.load(node.name)
        state.bytes_down += download.num_bytes
        state.download_seconds = self._composer.seconds(context, download.num_bytes)
        state.link_seconds += state.download_seconds
        state.num_messages += 1
        download = state.download = self.method.on_unpack(context, self._composer.parent(node), download)
        if self.world.transport.crosses_processes(node.name) and not self._composer.may_merge(context, download):
            self._refuse(context)
            return
        download = self.method.on_route(context, download)
        self.method.on_receive(context, download)
        if node.listens:
            state.download = None  # a listener sends nothing back
        if all(child.listens for child in node.children):
            self.method.on_merged(context)
        self.world.transport.after_merge()

    def _refuse(self, context: Context) -> None:
        """Take no part in a sub-round, because the download is invalid. The parent waits for an answer."""
        context.state.download, context.state.takes_part = None, False
        if not context.node.listens:
            self._delivery.deliver(context, None)

    def _fit(self, context: Context, train: Callable[[Context], FitCounts]) -> None:
        """A node trains on its own data. `train` calls `on_local_fit_start`, for it has the node's optimizer."""
        counts, state = train(context), context.state
        state.num_visits += 1
        state.num_batches += counts.num_batches
        state.num_steps += counts.num_steps
        state.num_tokens += counts.num_tokens
        state.fit_tokens = counts.num_tokens
        state.unsent_tokens += counts.num_tokens
        self.method.on_local_fit_end(context)

    def _upload(self, context: Context, takes_part: bool) -> None:
        """A child sends its upload to its parent. The parent checks the upload, and keeps it until it aggregates."""
        if takes_part:
            self._delivery.deliver(context, self._composer.upload(context))
            context.state.download = None  # the child has answered it, or missed the sub-round
        self._delivery.announce(context.node, context.subround + 1)

    def _aggregate(self, context: Context) -> None:
        """The parent merges the uploads of its participants."""
        state, name = context.state, context.node.name
        self._delivery.collect_uploads(context)
        uploads, state.uploads = list(state.uploads.values()), {}
        self.world.store.load(name)
        state.unsent_tokens += sum(upload.num_tokens for upload in uploads)  # `_fit` has counted the node's own
        if state.start is not None:  # its children received `start`, and the node itself trained on from there
            trained = state.parameters
            state.parameters, state.start = state.start, None
            if name in state.participants:
                own_upload = self._composer.own_upload(context, trained)
                uploads += [own_upload] if self._composer.admits(context, own_upload) else []
        self._check_number(context, uploads)
        if not uploads:
            log.warning("round %d: no node took part in %s; its model does not change", self.world.round + 1, name)
            return
        uploads.sort(key=lambda upload: upload.node)
        self.method.on_aggregate(context, uploads)
        self.method.after_aggregate(context, uploads)
        self.method.on_merged(context)

    def _check_number(self, context: Context, uploads: list[Upload]) -> None:
        name, minimum = context.node.name, context.node.settings.min_participants
        if len(uploads) < minimum:
            raise TooFewParticipants(
                f"round {self.world.round + 1}: {len(uploads)} participants of {name} are left "
                f"({', '.join(upload.node for upload in uploads) or 'none'}), but its min_participants is {minimum}"
            )


def run_round(world: World, callbacks: Iterable[object], fit: Callable[[Context], int]) -> None:
    """Run one round of a world in this process, without Lightning.

    `on_local_fit_start` and Lightning's hooks are not called, since there is no optimizer and no trainer.

    Args:
        world: The nodes. Its round counter is increased by one.
        callbacks: The callbacks of the method.
        fit: Trains the node of a context in place, and returns the number of tokens that the node read.
    """
    executor = RoundExecutor(world, Method(callbacks))
    executor.method.check(world.topology)
    executor.enter(0)
    for step in executor.program:
        executor.run(step, lambda context: FitCounts(num_tokens=fit(context)))
    world.round += 1
