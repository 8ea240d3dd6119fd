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
from worldlm.loop.exchange import Exchange, InProcessExchange
from worldlm.loop.hooks import Context, FederationCallback
from worldlm.topology import Topology

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
        self.exchange: Exchange = InProcessExchange()
        self.states = {name: NodeState(parameters=clone(initial)) for name in topology.nodes}
        self.participants: dict[str, tuple[str, ...]] = {}
        """By federation: its children, and itself where it holds data, that take part in its sub-round."""
        personal = {name: tensor for name, tensor in initial.items() if partition[name] != "backbone"}
        self.reference: Tensors = clone(personal)
        """The common initial keys and values."""
        self._starts: dict[str, Tensors] = {}

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
        """Whether a step of the program happens: the node and all federations above it take part."""
        parent = self.topology.parent(step.node)
        own_fit = step.kind == "fit" and (parent is None or bool(self.topology.nodes[step.node].children))
        if own_fit and step.node not in self.participants.get(step.node, ()):
            return False
        name = step.node
        while (parent := self.topology.parent(name)) is not None:
            listens = self.topology.nodes[name].listens
            if not listens and name not in self.participants.get(parent.name, ()):  # nor opened, where that takes none
                return False
            name = parent.name
        return True

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
        self.participants[node.name] = tuple(names)
        if node.fits and children:
            self._starts[node.name] = clone(context.state.parameters)  # its own fit must not reach its children

    def _may_take_part(self, name: str, subround: int) -> bool:
        context = self.context(name, subround)
        return all(callback.participates(self.trainer, context) for callback in self.callbacks)

    def _receive(self, context: Context) -> None:
        parent = self.topology.parent(context.node.name)
        assert parent is not None, "the root receives nothing"
        sender = self.context(parent.name, context.subround)
        parameters = self._starts.get(parent.name, sender.state.parameters)
        start = NodeState(parameters=parameters)
        download = Download(round=self.round, parts=start.parts(self.parts, self.partition))
        for callback in self.callbacks:
            download = callback.on_download(self.trainer, sender, context.node, download)
        self.exchange.send_download(context.node.name, download)
        for callback in self.callbacks:
            download = callback.on_route(self.trainer, context, download)
        for callback in self.callbacks:
            callback.on_receive(self.trainer, context, download)
        if context.node.listens:
            self.exchange.drop_download(context.node.name)
        if all(child.listens for child in context.node.children):
            self.merged(context)

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
        download = self.exchange.receive_download(context.node.name)
        for callback in self.callbacks:
            upload = callback.on_sanitise(self.trainer, context, upload, download)
        state.unsent_tokens = 0
        self.exchange.send_upload(parent.name, upload)

    def _aggregate(self, context: Context) -> None:
        name, state = context.node.name, context.state
        uploads = self.exchange.receive_uploads(name)
        state.unsent_tokens += sum(upload.num_tokens for upload in uploads)
        if name in self._starts:
            own, state.parameters = state.parameters, self._starts.pop(name)
            if name in self.participants[name]:
                parts = NodeState(parameters=own).parts(self.parts, self.partition)
                upload = Upload(node=name, round=self.round, parts=parts, num_tokens=state.fit_tokens)
                uploads = sorted([*uploads, upload], key=lambda one: one.node)
        if not uploads:
            log.warning("round %d: nobody took part in %s, its model stays as it is", self.round, name)
            return
        for callback in self.callbacks:
            callback.on_aggregate(self.trainer, context, uploads)
        for callback in self.callbacks:
            callback.on_emit(self.trainer, context, uploads)
        self.merged(context)

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return the whole world as plain containers and tensors, not copied."""
        return {
            "round": self.round,
            "seed": self.seed,
            "topology": {name: [child.name for child in node.children] for name, node in self.topology.nodes.items()},
            "states": {name: state.state_dict() for name, state in self.states.items()},
            "participants": {name: list(names) for name, names in self.participants.items()},
            "reference": self.reference,
            "starts": self._starts,
            "exchange": self.exchange.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`.

        Raises:
            ValueError: If the checkpoint is of another tree or seed.
        """
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
        self.participants = {name: tuple(names) for name, names in state["participants"].items()}
        self.reference = state["reference"]
        self._starts = state["starts"]
        self.exchange.load_state_dict(state["exchange"])
