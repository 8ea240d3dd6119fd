"""What both kinds of privacy share: a ledger per node, and the end of a budget."""

import logging
import math
from typing import Any

from worldlm.callbacks.scalars import log_scalars
from worldlm.federation.privacy import PrivacyLedger
from worldlm.loop import Context, FederationCallback, WorldTrainer
from worldlm.topology import Privacy

log = logging.getLogger(__name__)


class PrivacyLedgers(FederationCallback):
    """Keeps every node's ledger over restarts, logs what it says, and ends the part of a node that may not go on."""

    def __init__(self) -> None:
        self.ledgers: dict[str, PrivacyLedger] = {}
        self._stopped: set[str] = set()

    def epsilon(self, name: str, delta: float) -> float:
        """Return the epsilon that a node has spent at `delta` (PRV)."""
        return self.ledgers.get(name, PrivacyLedger()).epsilon(delta)

    def _may_go_on(self, context: Context, privacy: Privacy, what: str, rate: float = 1.0, steps: int = 1) -> bool:
        """Whether `what`, so many releases, keeps to the node's `max_epsilon`; if not, say so once."""
        if privacy.max_epsilon is None:
            return True
        name = context.node.name
        ledger = self.ledgers.get(name, PrivacyLedger())
        after = ledger.epsilon_after(privacy.noise_multiplier, privacy.delta, rate, steps)
        if after > privacy.max_epsilon and name not in self._stopped:
            self._stopped.add(name)
            log.warning(
                "%s takes no more part from round %d: its next %s would bring it to epsilon %.2f, beyond its "
                "max_epsilon of %g (spent so far: %.2f)",
                name, context.round, what, after, privacy.max_epsilon, self.epsilon(name, privacy.delta),
            )  # fmt: skip
        return after <= privacy.max_epsilon

    def _log_epsilon(self, trainer: WorldTrainer, context: Context, privacy: Privacy, tag: str) -> None:
        """Log what a node has spent, by both accounts, where it is finite."""
        ledger = self.ledgers.get(context.node.name, PrivacyLedger())
        spent = {tag: ledger.epsilon(privacy.delta), f"{tag}_rdp": ledger.epsilon_rdp(privacy.delta)}
        scalars = {f"{context.node.name}/{one}": value for one, value in spent.items() if math.isfinite(value)}
        log_scalars(trainer, scalars, context.round)

    def state_dict(self) -> dict[str, Any]:
        return {"ledgers": {name: [list(run) for run in one.history] for name, one in self.ledgers.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.ledgers = {
            name: PrivacyLedger([(noise, rate, steps) for noise, rate, steps in history])
            for name, history in state_dict["ledgers"].items()
        }
