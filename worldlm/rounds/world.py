"""The world: every node's state, where it is, and what a checkpoint keeps of it. Free of Lightning's loops."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from worldlm.checkpoint.read import FORMAT
from worldlm.checkpoint.validate import check_memories, check_messages, check_saved, check_weights, tree
from worldlm.distributed.transport import Transport
from worldlm.federation.membership import carry_over
from worldlm.federation.parameters import PARTS, Part, Tensors, clone
from worldlm.federation.state import NodeState
from worldlm.rounds.callback import Context, FederationCallback
from worldlm.rounds.program import compile_round
from worldlm.topology import Topology
from worldlm.topology.changes import Changes, described

if TYPE_CHECKING:
    from worldlm.trainer.world_trainer import WorldTrainer

log = logging.getLogger(__name__)


class World:
    """All nodes of a topology.

    Args:
        trainer: Handed on to the callbacks' hooks; its callbacks are the method.
        topology: Who federates with whom.
        partition: The part that every parameter belongs to, by name.
        initial: The weights that every node starts from, by name; copied.
        seed: Seed of all random draws.
        transport: Which nodes are held here, and how the others are reached.
    """

    def __init__(
        self,
        trainer: WorldTrainer,
        topology: Topology,
        partition: Mapping[str, Part],
        initial: Tensors,
        seed: int,
        transport: Transport,
    ) -> None:
        self.trainer = trainer
        self.topology = topology
        self.partition = partition
        self.seed = seed
        self.transport = transport
        self.program = compile_round(topology)
        self.round = 0
        self.store = trainer.node_store([name for name in topology.nodes if transport.is_local(name)])
        self.states = {
            name: NodeState(parameters=self.store.initial(initial) if transport.is_local(name) else {})
            for name in topology.nodes
        }
        """Of nodes that another process holds, just what `NodeState.figures` keeps, as of the last round's end."""
        self.store.adopt(self.states)
        self.states[topology.root.name].takes_part = True
        personal = {name: tensor for name, tensor in initial.items() if partition[name] != "backbone"}
        self.reference: Tensors = self.store.hold(clone(personal))
        """The common initial keys and values."""
        self.changes = Changes()
        """What has changed in the topology since the checkpoint that the run goes on from."""
        self.changed_after = 0
        """Rounds that were finished then."""

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

    def merged(self, context: Context) -> None:
        """Tell the callbacks that a node stands as its federation made it."""
        for callback in self.callbacks:
            callback.on_merged(self.trainer, context)

    # ------------------------------------------------------------------ checkpoints

    def figures(self) -> dict[str, dict[str, Any]]:
        """Return what is known, without tensors, of the nodes that are held here."""
        return {name: state.figures() for name, state in self.states.items() if self.transport.is_local(name)}

    def take_figures(self, figures: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep what another process knows of its nodes."""
        for name, known in figures.items():
            if not self.transport.is_local(name):
                self.states[name] = NodeState(**known)

    @cached_property
    def _nodes(self) -> dict[str, dict[str, Any]]:
        return described(self.topology)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole world as plain containers and tensors, not copied; `states` of the nodes held here."""
        return {
            "format": FORMAT,
            "round": self.round,
            "seed": self.seed,
            "topology": tree(self.topology),
            "nodes": self._nodes,
            "steps": self.trainer.steps_per_round(),
            "states": {
                name: state.state_dict() for name, state in self.states.items() if self.transport.is_local(name)
            },
            "reference": self.reference,
        }

    def load_state_dict(self, state: Mapping[str, Any], num_rounds: int | None = None) -> None:
        """Restore `state_dict`; where the topology has changed, carry over what still applies, and say so.

        Args:
            state: What was saved.
            num_rounds: Rounds that it has finished; None if it was saved within one.

        Raises:
            ValueError: If the checkpoint is of another seed, version or model, or of a topology that this one cannot
                follow.
        """
        self.changes = check_saved(state, self.topology, self._nodes, self.seed, num_rounds)
        self.round = state["round"]
        saved = {name: NodeState.from_state_dict(one) for name, one in state["states"].items()}
        model: Tensors = dict(self.trainer.lightning_module.named_parameters())
        for name, one in saved.items():
            check_weights(f"of {name}", one.parameters, model)
        check_weights("that all started from", state["reference"], self.reference)
        check_memories(saved, self.callbacks, model)
        check_messages(saved, NodeState(parameters=model).parts(frozenset(PARTS), self.partition), self.parts)
        self.states = {name: saved[name] for name in self.topology.nodes} if not self.changes else {}
        if self.changes and num_rounds is not None:
            self._change(saved, state["steps"], num_rounds)
        for name, known in self.states.items():
            self.states[name] = known if self.transport.is_local(name) else NodeState(**known.figures())
        self.store.adopt(self.states)
        self.reference = self.store.hold(clone(state["reference"]))

    def _change(self, saved: Mapping[str, NodeState], steps: Mapping[str, int], num_rounds: int) -> None:
        """Go over to a changed topology, in every process for all nodes."""
        self.changed_after = num_rounds
        self.states = carry_over(saved, self.changes, self.topology, self.transport.is_local)
        for name, now in self.trainer.steps_per_round().items():
            self.states[name].extra_steps += num_rounds * (steps.get(name, 0) - now)
        for callback in self.callbacks:
            callback.on_topology_change(self.trainer, self.changes, {**saved, **self.states})
        if self.trainer.is_global_zero:
            for line in self.changes.lines():
                log.info("after round %d: %s", num_rounds, line)
            for line in self.changes.warnings():
                log.warning("after round %d: %s", num_rounds, line)
