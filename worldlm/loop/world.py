"""The world: every node's state, and the steps of a round in which nodes talk.

Free of Lightning's loops. A node's step sees its own state and the messages it was sent, nothing else.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from worldlm.federation.messages import Download, Upload
from worldlm.federation.parameters import Part, Tensors, clone
from worldlm.federation.program import Step
from worldlm.federation.state import NodeState
from worldlm.loop.hooks import Context, FederationCallback
from worldlm.topology import Node, Topology

if TYPE_CHECKING:
    from worldlm.loop.trainer import WorldTrainer

log = logging.getLogger(__name__)

_FORMAT = 2
"""Counted up whenever what a checkpoint says of the world changes its meaning."""


class World:
    """All nodes of a topology.

    Args:
        trainer: Handed on to the callbacks' hooks; its callbacks are the method.
        topology: Who federates with whom.
        partition: The part that every parameter belongs to, by name.
        initial: The weights that every node starts from, by name; copied.
        seed: Seed of all random draws.
    """

    def __init__(
        self,
        trainer: WorldTrainer,
        topology: Topology,
        partition: Mapping[str, Part],
        initial: Tensors,
        seed: int,
    ) -> None:
        self.trainer = trainer
        self.topology = topology
        self.partition = partition
        self.seed = seed
        self.round = 0
        self.states = {name: NodeState(parameters=clone(initial)) for name in topology.nodes}
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

    def run(self, step: Step) -> None:
        """Carry out one step in which nodes talk."""
        steps: dict[str, Callable[[Context], None]] = {
            "open": self._open,
            "receive": self._receive,
            "upload": self._upload,
            "aggregate": self._aggregate,
        }
        steps[step.kind](self.context(step.node, step.subround))

    def merged(self, context: Context) -> None:
        """Tell the callbacks that a node stands as its federation made it."""
        for callback in self.callbacks:
            callback.on_merged(self.trainer, context)

    # ------------------------------------------------------------------ the steps of a round

    def _open(self, context: Context) -> None:
        node = context.node
        children = sorted(child.name for child in node.children if not child.listens)
        names = [name for name in children if self._may_take_part(name, context.subround)]
        if names and node.settings.participation < 1:
            size = max(1, round(node.settings.participation * len(children)))
            drawn = random.Random(context.seed("participation"))
            names = sorted(drawn.sample(names, min(size, len(names))))
        if node.fits and self._may_take_part(node.name, context.subround):
            names.append(node.name)
        context.state.participants = tuple(names)
        if node.fits and children:
            context.state.start = clone(context.state.parameters)  # its own fit must not reach its children

    def _may_take_part(self, name: str, subround: int) -> bool:
        context = self.context(name, subround)
        return all(callback.participates(self.trainer, context) for callback in self.callbacks)

    def _receive(self, context: Context) -> None:
        node, state = context.node, context.state
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
        parent = self.topology.parent(child.name)
        assert parent is not None, "the root receives nothing"
        sender = self.context(parent.name, subround)
        state = sender.state
        if not state.takes_part or not (child.listens or child.name in state.participants):
            return None
        start = NodeState(parameters=state.parameters if state.start is None else state.start)
        download = Download(round=self.round, parts=start.parts(self.parts, self.partition))
        for callback in self.callbacks:
            download = callback.on_download(self.trainer, sender, child, download)
        return download

    def _upload(self, context: Context) -> None:
        parent = self.topology.parent(context.node.name)
        assert parent is not None, "the root sends nothing"
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
        self.states[parent.name].uploads[upload.node] = upload

    def _aggregate(self, context: Context) -> None:
        name, state = context.node.name, context.state
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

    def state_dict(self) -> dict[str, Any]:
        """Return the whole world as plain containers and tensors, not copied."""
        return {
            "format": _FORMAT,
            "round": self.round,
            "seed": self.seed,
            "topology": {name: [child.name for child in node.children] for name, node in self.topology.nodes.items()},
            "states": {name: state.state_dict() for name, state in self.states.items()},
            "reference": self.reference,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`.

        Raises:
            ValueError: If the checkpoint is of another tree, seed or version.
        """
        if state.get("format") != _FORMAT:
            raise ValueError(
                f"the checkpoint is of format {state.get('format', 1)}, this WorldLM reads format {_FORMAT}: "
                "go on with the version that wrote it, or start anew"
            )
        tree = {name: [child.name for child in node.children] for name, node in self.topology.nodes.items()}
        if {n: sorted(c) for n, c in tree.items()} != {n: sorted(c) for n, c in state["topology"].items()}:
            raise ValueError(
                f"the checkpoint is of another topology, with nodes {', '.join(state['topology'])}; "
                f"this run has {', '.join(tree)}"
            )
        if state["seed"] != self.seed:
            raise ValueError(
                f"the checkpoint was made with seed {state['seed']}, this run has seed {self.seed}: "
                "its data order and noise would change half way"
            )
        self.round = state["round"]
        self.states = {name: NodeState.from_state_dict(one) for name, one in state["states"].items()}
        self.reference = state["reference"]
