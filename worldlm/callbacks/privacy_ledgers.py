"""Privacy ledgers and budgets of nodes, for both kinds of privacy."""

import logging
import math
from collections.abc import Mapping
from typing import Any, TypedDict

from lightning.pytorch.utilities import rank_zero_only

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
    """Keeps a privacy ledger per node, logs its epsilon, and excludes nodes that have used up their budget.

    Ledgers are saved in checkpoints. A node that left the topology and joins again gets its old ledger back, because
    its earlier releases cannot be taken back.
    """

    memory_schema = _Memory

    def __init__(self) -> None:
        self._stopped: set[str] = set()
        self._left: dict[str, dict[str, Any]] = {}  # memories of nodes that have left the topology

    def on_topology_change(self, world: World, changes: Changes, states: Mapping[str, NodeState]) -> None:
        for name in changes.left:
            memory = states[name].memory.get(self.state_key, {})
            if memory.get("history"):
                self._left[name] = memory
        for name in changes.joined:
            if name in self._left:
                self.memory(states[name]).update(self._left.pop(name))
                spent = sum(steps for *_, steps in self.ledger(states[name]).history)
                message = "%s was in the topology before: its ledger of %d releases is restored"
                rank_zero_only(log.warning)(message, name, spent)  # all processes run this, one logs it

    def state_dict(self) -> dict[str, Any]:
        return {"left": dict(self._left)} if self._left else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        left = state_dict.get("left", {})
        self._left = {
            name: memory if isinstance(memory, dict) else {"history": memory} for name, memory in left.items()
        }

    def ledger(self, state: NodeState) -> PrivacyLedger:
        """Return a copy of a node's ledger, with all its releases so far."""
        return PrivacyLedger([(noise, rate, steps) for noise, rate, steps in self.memory(state).get("history", ())])

    def _spend(self, state: NodeState, noise_multiplier: float, sample_rate: float = 1.0) -> None:
        """Add one release to a node's ledger."""
        ledger = self.ledger(state)
        ledger.step(noise_multiplier, sample_rate)
        self.memory(state)["history"] = [list(run) for run in ledger.history]

    def _may_go_on(self, context: Context, privacy: Privacy, what: str, rate: float = 1.0, steps: int = 1) -> bool:
        """Return whether the next `what`, of `steps` releases, fits the node's `max_epsilon`; log once if not."""
        if privacy.max_epsilon is None:
            return True
        name, ledger = context.node.name, self.ledger(context.state)
        after = ledger.epsilon_after(privacy.noise_multiplier, privacy.delta, rate, steps)
        if after > privacy.max_epsilon and name not in self._stopped:
            self._stopped.add(name)
            log.warning(
                "%s no longer takes part, from round %d on: its next %s would raise its epsilon to %.2f at delta "
                "%g, above its max_epsilon of %g (spent so far: %.2f)",
                name, context.round + 1, what, after, privacy.delta, privacy.max_epsilon, ledger.epsilon(privacy.delta),
            )  # fmt: skip
        return after <= privacy.max_epsilon

    def _log_epsilon(self, context: Context, privacy: Privacy, tag: str) -> None:
        """Log a node's epsilon by both accountants, where it is finite, and its budget."""
        ledger = self.ledger(context.state)
        scalars = {tag: ledger.epsilon(privacy.delta), f"{tag}_rdp": ledger.epsilon_rdp(privacy.delta)}
        if privacy.max_epsilon is not None:
            scalars[f"max_{tag}"] = privacy.max_epsilon
        context.log({f"{context.node.name}/{name}": value for name, value in scalars.items() if math.isfinite(value)})
