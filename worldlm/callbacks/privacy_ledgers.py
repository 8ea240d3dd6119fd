"""What both kinds of privacy share: a ledger per node, and the end of a budget."""

import logging
import math
from collections.abc import Mapping
from typing import Any, TypedDict

from worldlm.federation.privacy import PrivacyLedger
from worldlm.federation.state import NodeState
from worldlm.rounds import Context, World
from worldlm.topology import Privacy
from worldlm.topology.changes import Changes
from worldlm.trainer import FederationCallback

log = logging.getLogger(__name__)


class _Memory(TypedDict, total=False):
    history: list[list[float]]


class PrivacyLedgers(FederationCallback):
    """Keeps every node's ledger over restarts, logs what it says, and ends the part of a node that may not go on.

    A node that left the world and comes back takes its ledger up again: what it released before is still out there.
    """

    memory_schema = _Memory

    def __init__(self) -> None:
        self._stopped: set[str] = set()
        self._left: dict[str, list[list[float]]] = {}  # ledgers of nodes that are not in the world now

    def on_topology_change(self, world: World, changes: Changes, states: Mapping[str, NodeState]) -> None:
        for name in changes.left:
            if history := states[name].memory.get(self.state_key, {}).get("history"):
                self._left[name] = history
        for name in changes.joined:
            if name in self._left:
                self.memory(states[name])["history"] = self._left.pop(name)
                spent = sum(steps for *_, steps in self.ledger(states[name]).history)
                if world.transport.is_local(world.topology.root.name):  # all processes do this, one logs it
                    log.warning("%s was here before: it takes up its ledger, of %d releases", name, spent)

    def state_dict(self) -> dict[str, Any]:
        return {"left": dict(self._left)} if self._left else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._left = dict(state_dict.get("left", {}))

    def ledger(self, state: NodeState) -> PrivacyLedger:
        """Return a copy of a node's account: what it has released so far."""
        return PrivacyLedger([(noise, rate, steps) for noise, rate, steps in self.memory(state).get("history", ())])

    def _spend(self, state: NodeState, noise_multiplier: float, sample_rate: float = 1.0) -> None:
        """Write down one release."""
        ledger = self.ledger(state)
        ledger.step(noise_multiplier, sample_rate)
        self.memory(state)["history"] = [list(run) for run in ledger.history]

    def _may_go_on(self, context: Context, privacy: Privacy, what: str, rate: float = 1.0, steps: int = 1) -> bool:
        """Whether `what`, so many releases, keeps to the node's `max_epsilon`; if not, say so once."""
        if privacy.max_epsilon is None:
            return True
        name, ledger = context.node.name, self.ledger(context.state)
        after = ledger.epsilon_after(privacy.noise_multiplier, privacy.delta, rate, steps)
        if after > privacy.max_epsilon and name not in self._stopped:
            self._stopped.add(name)
            log.warning(
                "%s takes no more part from round %d: its next %s would bring it to epsilon %.2f, beyond its "
                "max_epsilon of %g (spent so far: %.2f)",
                name, context.round, what, after, privacy.max_epsilon, ledger.epsilon(privacy.delta),
            )  # fmt: skip
        return after <= privacy.max_epsilon

    def _log_epsilon(self, context: Context, privacy: Privacy, tag: str) -> None:
        """Log what a node has spent, by both accounts, where it is finite, and its budget."""
        ledger = self.ledger(context.state)
        spent = {tag: ledger.epsilon(privacy.delta), f"{tag}_rdp": ledger.epsilon_rdp(privacy.delta)}
        if privacy.max_epsilon is not None:
            spent[f"max_{tag}"] = privacy.max_epsilon
        scalars = {f"{context.node.name}/{one}": value for one, value in spent.items() if math.isfinite(value)}
        context.log(scalars)
