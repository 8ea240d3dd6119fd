"""The world: all nodes with their states, their store, and the transport between processes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from worldlm.federation.noise_key import NoiseKey
from worldlm.federation.parameters import Part, Tensors, clone
from worldlm.federation.state import NodeState
from worldlm.rounds.log import LogSink
from worldlm.rounds.transport import Transport
from worldlm.storage.node_store import NodeStore
from worldlm.topology import Topology
from worldlm.topology.changes import Changes, Described, described


class World:
    """All nodes of a topology.

    Args:
        topology: The nodes and their federations.
        partition: The part that every parameter belongs to, by name.
        initial: The weights that every node starts from, by name; copied.
        seed: Seed of all random draws.
        store: Stores waiting nodes; by default in host memory.
        transport: Exchanges messages between processes; by default this process holds all nodes.
        log: Receives metrics; by default they are dropped.
        noise_key: The secret of all noise; by default a new one if the topology demands privacy.
    """

    def __init__(
        self,
        topology: Topology,
        partition: Mapping[str, Part],
        initial: Tensors,
        *,
        seed: int = 0,
        store: NodeStore | None = None,
        transport: Transport | None = None,
        log: LogSink | None = None,
        noise_key: NoiseKey | None = None,
    ) -> None:
        self.topology = topology
        self.partition = partition
        self.seed = seed
        self.store = store or NodeStore()
        self.transport = transport or Transport()
        self.log = log or LogSink()
        self.noise_key = noise_key or (NoiseKey() if topology.demands_privacy else None)
        self.round = 0
        """The current or next round, from 0."""
        self.num_rounds: int | None = None
        """Rounds of the whole run; None or -1 if it has no end."""
        self.states = {name: NodeState(parameters=self._initial_weights(name, initial)) for name in topology.nodes}
        """State of every node, by name. For nodes of other processes: `NodeState.figures`, as of the last round."""
        self.store.register(self.states)
        self.states[topology.root.name].takes_part = True
        personal = {name: tensor for name, tensor in initial.items() if partition[name] != "backbone"}
        self.reference: Tensors = self.store.to_storage(clone(personal))
        """The keys and values that all nodes started from."""
        self.changes = Changes()
        """How the topology differs from that of the checkpoint that the run resumed from."""
        self.changed_after = 0
        """Number of rounds that were finished when the topology changed."""

    def _initial_weights(self, name: str, initial: Tensors) -> Tensors:
        return self.store.initial_weights(initial) if self.transport.is_local(name) else {}

    @cached_property
    def description(self) -> Described:
        """The settings of every node as plain values, to detect changes when a run resumes."""
        return described(self.topology)

    def local_states(self) -> dict[str, NodeState]:
        """Return the states of the nodes that this process holds, by name."""
        return {name: state for name, state in self.states.items() if self.transport.is_local(name)}

    def figures(self) -> dict[str, dict[str, Any]]:
        """Return the states of the nodes that this process holds, without tensors, by name."""
        return {name: state.figures() for name, state in self.local_states().items()}

    def take_figures(self, figures: Mapping[str, Mapping[str, Any]]) -> None:
        """Store the figures of nodes that another process holds."""
        for name, values in figures.items():
            if not self.transport.is_local(name):
                self.states[name] = NodeState(**values)
