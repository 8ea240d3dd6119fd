"""The world: every node's state, and the steps of a round in which nodes talk.

Free of Lightning's loops. A node's step sees its own state and the messages it was sent, nothing else. So it makes no
difference which process holds a node: messages between nodes of two processes travel over the wire.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from worldlm.federation.messages import Download, Upload, download_from_state, message_state, upload_from_state
from worldlm.federation.parameters import Part, Tensors, clone
from worldlm.federation.program import Step, compile_round
from worldlm.federation.state import NodeState
from worldlm.loop.hooks import Context, FederationCallback
from worldlm.loop.saved_world import FORMAT, check_saved, tree
from worldlm.loop.wire import Wire
from worldlm.topology import Node, Topology

if TYPE_CHECKING:
    from worldlm.loop.trainer import WorldTrainer

log = logging.getLogger(__name__)


class World:
    """All nodes of a topology.

    Args:
        trainer: Handed on to the callbacks' hooks; its callbacks are the method.
        topology: Who federates with whom.
        partition: The part that every parameter belongs to, by name.
        initial: The weights that every node starts from, by name; copied.
        seed: Seed of all random draws.
        wire: Which nodes are held here, and how the others are reached.
    """

    def __init__(
        self,
        trainer: WorldTrainer,
        topology: Topology,
        partition: Mapping[str, Part],
        initial: Tensors,
        seed: int,
        wire: Wire,
    ) -> None:
        self.trainer = trainer
        self.topology = topology
        self.partition = partition
        self.seed = seed
        self.wire = wire
        self.program = compile_round(topology)
        self._places = {step: place for place, step in enumerate(self.program)}
        self._began = 0  # the step at which this process entered the round
        self.round = 0
        self.states = {name: NodeState(parameters=clone(initial) if wire.here(name) else {}) for name in topology.nodes}
        """Of nodes that another process holds, just what `NodeState.figures` keeps, as of the last round's end."""
        self.states[topology.root.name].takes_part = True
        personal = {name: tensor for name, tensor in initial.items() if partition[name] != "backbone"}
        self.reference: Tensors = clone(personal)
        """The common initial keys and values."""

    # ------------------------------------------------------------------ who takes part

    @property
    def callbacks(self) -> list[FederationCallback]:
        """The pieces of the method, in the order of the recipe."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        return [callback for callback in callbacks if isinstance(callback, FederationCallback)]

    @property
    def parts(self) -> frozenset[Part]:
        """Parts of the model that some callback needs, and that therefore travel."""
        return frozenset().union(*(callback.parts for callback in self.callbacks))

    def context(self, name: str, subround: int = 0) -> Context:
        """Return what a hook at a node is handed."""
        node = self.topology.nodes[name]
        return Context(world=self, node=node, state=self.states[name], round=self.round, subround=subround)

    def takes_part(self, step: Step) -> bool:
        """Whether a step of the program happens: the node, and with it all federations above it, take part."""
        state, node = self.states[step.node], self.topology.nodes[step.node]
        if step.kind == "fit" and (node.children or step.node == self.topology.root.name):
            return state.takes_part and step.node in state.participants
        return state.takes_part or step.kind == "receive"  # which is where a node learns whether it does

    def begin(self, cursor: int) -> None:
        """Enter a round at a step of the program: say to other processes what the steps before it would have said."""
        self._began = cursor
        for step, place in self._places.items():
            child = self.topology.nodes[step.node]
            if step.kind != "receive" or not self.wire.apart(child.name):
                continue
            opened = self._places[Step("open", self._parent(child).name, step.subround)]
            if self.wire.here(child.name):
                uploaded = self._places.get(Step("upload", child.name, step.subround - 1), -1)
                if uploaded < cursor <= opened:
                    self._announce(child, step.subround)
            elif self.wire.here(self._parent(child).name) and opened < cursor <= place:
                self._send_down(child, step.subround)

    def _parent(self, node: Node) -> Node:
        parent = self.topology.parent(node.name)
        assert parent is not None, "the root talks to nobody above it"
        return parent

    def run(self, step: Step) -> None:
        """Carry out one step in which nodes talk, at a node that is held here."""
        context, happens = self.context(step.node, step.subround), self.takes_part(step)
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

    def merged(self, context: Context) -> None:
        """Tell the callbacks that a node stands as its federation made it."""
        for callback in self.callbacks:
            callback.on_merged(self.trainer, context)

    # ------------------------------------------------------------------ the steps of a round

    def _open(self, context: Context, happens: bool) -> None:
        node, subround = context.node, context.subround
        children = sorted(child.name for child in node.children if not child.listens)
        names = [name for name in children if self._is_ready(name, subround, happens)]
        if happens:
            self._choose(context, names, len(children))
            if node.fits and children:
                context.state.start = clone(context.state.parameters)  # its own fit must not reach its children
        for child in node.children:
            if self.wire.apart(child.name):
                self._send_down(child, subround)

    def _choose(self, context: Context, names: list[str], num_children: int) -> None:
        """Draw the participants of a sub-round among the children that may take part."""
        node = context.node
        if names and node.settings.participation < 1:
            size = max(1, round(node.settings.participation * num_children))
            drawn = random.Random(context.seed("participation"))
            names = sorted(drawn.sample(names, min(size, len(names))))
        if node.fits and self._may_take_part(node.name, context.subround):
            names.append(node.name)
        context.state.participants = tuple(names)

    def _is_ready(self, child: str, subround: int, happens: bool) -> bool:
        if self.wire.apart(child):  # who has sent it, whether it is wanted or not
            return bool(self.wire.receive(child, "ready"))
        return happens and self._may_take_part(child, subround)

    def _may_take_part(self, name: str, subround: int) -> bool:
        context = self.context(name, subround)
        return all(callback.participates(self.trainer, context) for callback in self.callbacks)

    def _announce(self, child: Node, subround: int) -> None:
        """Say to a parent elsewhere whether a child may take part in its next sub-round of this round."""
        if child.listens or not self.wire.apart(child.name):
            return
        if Step("open", self._parent(child).name, subround) in self._places:
            self.wire.send(child.name, "ready", self._may_take_part(child.name, subround))

    def _send_down(self, child: Node, subround: int) -> None:
        """Send a child elsewhere its download, or that there is none."""
        download = self._compose(child, subround)
        self.wire.send(child.name, "down", None if download is None else message_state(download))

    def _receive(self, context: Context) -> None:
        node, state = context.node, context.state
        if self.wire.apart(node.name):
            sent = self.wire.receive(node.name, "down")
            download = None if sent is None else download_from_state(sent)
        else:
            download = self._compose(node, context.subround)
        state.takes_part = download is not None
        if download is None:
            return
        state.download = download
        state.bytes_down += download.num_bytes
        state.num_messages += 1
        for callback in self.callbacks:
            download = callback.on_route(self.trainer, context, download)
        for callback in self.callbacks:
            callback.on_receive(self.trainer, context, download)
        if node.listens:
            state.download = None  # it sends nothing back
        if all(child.listens for child in node.children):
            self.merged(context)

    def _compose(self, child: Node, subround: int) -> Download | None:
        """Write what a child's parent sends to it; None where the child takes no part."""
        sender = self.context(self._parent(child).name, subround)
        state = sender.state
        if not state.takes_part or not (child.listens or child.name in state.participants):
            return None
        start = NodeState(parameters=state.parameters if state.start is None else state.start)
        download = Download(round=self.round, parts=start.parts(self.parts, self.partition))
        for callback in self.callbacks:
            download = callback.on_download(self.trainer, sender, child, download)
        return download

    def _upload(self, context: Context) -> None:
        state = context.state
        upload = Upload(
            node=context.node.name,
            round=self.round,
            parts=state.parts(self.parts, self.partition),
            num_tokens=state.unsent_tokens,
        )
        for callback in self.callbacks:
            upload = callback.on_upload(self.trainer, context, upload)
        assert state.download is not None, "who takes part was sent something"
        for callback in self.callbacks:
            upload = callback.on_sanitise(self.trainer, context, upload, state.download)
        state.download = None
        state.unsent_tokens = 0
        state.bytes_up += upload.num_bytes
        state.num_messages += 1
        if self.wire.apart(upload.node):
            self.wire.send(upload.node, "up", message_state(upload))
        else:
            self.states[self._parent(context.node).name].uploads[upload.node] = upload

    def _aggregate(self, context: Context) -> None:
        name, state = context.node.name, context.state
        for child in (child for child in state.participants if self.wire.apart(child) and child != name):
            if self._places[Step("upload", child, context.subround)] >= self._began:
                state.uploads[child] = upload_from_state(self.wire.receive(child, "up"))
        uploads, state.uploads = [*state.uploads.values()], {}
        state.unsent_tokens += sum(upload.num_tokens for upload in uploads)
        if state.start is not None:
            own, state.parameters, state.start = state.parameters, state.start, None
            if name in state.participants:
                parts = NodeState(parameters=own).parts(self.parts, self.partition)
                uploads.append(Upload(node=name, round=self.round, parts=parts, num_tokens=state.fit_tokens))
        if not uploads:
            log.warning("round %d: nobody took part in %s, its model stays as it is", self.round, name)
            return
        uploads.sort(key=lambda one: one.node)
        for callback in self.callbacks:
            callback.on_aggregate(self.trainer, context, uploads)
        for callback in self.callbacks:
            callback.on_emit(self.trainer, context, uploads)
        self.merged(context)

    # ------------------------------------------------------------------ checkpoints

    def figures(self) -> dict[str, dict[str, Any]]:
        """Return what is known, without tensors, of the nodes that are held here."""
        return {name: state.figures() for name, state in self.states.items() if self.wire.here(name)}

    def take_figures(self, figures: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep what another process knows of its nodes."""
        for name, known in figures.items():
            if not self.wire.here(name):
                self.states[name] = NodeState(**known)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole world as plain containers and tensors, not copied; `states` of the nodes held here."""
        return {
            "format": FORMAT,
            "round": self.round,
            "seed": self.seed,
            "topology": tree(self.topology),
            "states": {name: state.state_dict() for name, state in self.states.items() if self.wire.here(name)},
            "reference": self.reference,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`.

        Raises:
            ValueError: If the checkpoint is of another tree, seed or version.
        """
        check_saved(state, self.topology, self.seed)
        self.round = state["round"]
        states = {name: NodeState.from_state_dict(one) for name, one in state["states"].items()}
        self.states = {name: states[name] for name in self.topology.nodes}
        for name, known in self.states.items():
            self.states[name] = known if self.wire.here(name) else NodeState(**known.figures())
        self.reference = state["reference"]
