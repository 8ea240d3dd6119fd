"""Update-level differential privacy at every edge whose topology asks for it."""

import logging
import math
from dataclasses import replace
from typing import Any

import torch

from worldlm.callbacks.scalars import log_scalars
from worldlm.federation.messages import Download, Residual, Upload
from worldlm.federation.privacy import PrivacyLedger, sanitise
from worldlm.loop import Context, FederationCallback, WorldTrainer
from worldlm.topology import Privacy

log = logging.getLogger(__name__)


class UpdatePrivacy(FederationCallback):
    """Clips and noises what leaves a node, as the node's `privacy` in the topology says, and keeps its ledger.

    The unit of privacy is the node with all that is below it. What is sanitised is the whole upload, as one vector:
    `upload - what the parent sent`, and for parts that the parent does not send, `upload - the common initial
    weights`. The node's own keys and values stay as they are at home. Every upload is one release of sample rate 1;
    a residual that climbs with it, as its origin sanitised it, is one more.
    A node whose next release would pass its `max_epsilon` takes no more part, and says so.
    """

    honours = frozenset({"privacy"})

    def __init__(self) -> None:
        self.ledgers: dict[str, PrivacyLedger] = {}
        self._stopped: set[str] = set()

    def epsilon(self, name: str, delta: float) -> float:
        """Return the epsilon that a node has spent at `delta` (PRV)."""
        return self.ledgers.get(name, PrivacyLedger()).epsilon(delta)

    def participates(self, trainer: WorldTrainer, context: Context) -> bool:
        name, privacy = context.node.name, context.node.settings.privacy
        sends = context.world.topology.parent(name) is not None
        if privacy is None or privacy.max_epsilon is None or not sends:
            return True
        after = self.ledgers.get(name, PrivacyLedger()).epsilon_after(privacy.noise_multiplier, privacy.delta)
        if after <= privacy.max_epsilon:
            return True
        if name not in self._stopped:
            self._stopped.add(name)
            log.warning(
                "%s takes no more part from round %d: its next upload would bring it to epsilon %.2f, beyond its "
                "max_epsilon of %g (spent so far: %.2f)",
                name, context.round, after, privacy.max_epsilon, self.epsilon(name, privacy.delta),
            )  # fmt: skip
        return False

    def on_sanitise(self, trainer: WorldTrainer, context: Context, upload: Upload, download: Download) -> Upload:
        privacy = context.node.settings.privacy
        if privacy is None:
            return upload
        start = dict(context.world.reference)
        for sent in download.parts.values():
            start.update(sent)
        model = {name: tensor for tensors in upload.parts.values() for name, tensor in tensors.items()}
        sanitised = sanitise(
            model,
            start,
            clip_norm=privacy.clip_norm,
            noise_multiplier=privacy.noise_multiplier,
            generator=torch.Generator().manual_seed(context.seed("upload noise")),
        )
        self.ledgers.setdefault(context.node.name, PrivacyLedger()).step(privacy.noise_multiplier)
        residuals = self._affordable(context, privacy, upload.residuals)
        self._log(trainer, context, privacy, sanitised.update_norm)
        parts = {part: {name: sanitised.tensors[name] for name in tensors} for part, tensors in upload.parts.items()}
        return replace(upload, parts=parts, metrics={}, residuals=residuals)

    def _affordable(self, context: Context, privacy: Privacy, residuals: tuple[Residual, ...]) -> tuple[Residual, ...]:
        """Write residuals that climb with an upload down as releases of their own; stop what the budget forbids."""
        ledger, passed = self.ledgers[context.node.name], []
        for residual in residuals:
            origin = context.world.topology.nodes[residual.origin].settings.privacy
            noise = privacy.noise_multiplier if origin is None else origin.noise_multiplier
            after = ledger.epsilon_after(noise, privacy.delta) if privacy.max_epsilon is not None else 0.0
            if privacy.max_epsilon is not None and after > privacy.max_epsilon:
                log.warning(
                    "residual of %s stays in %s: it would bring it to epsilon %.2f, beyond its max_epsilon of %g",
                    residual.origin, context.node.name, after, privacy.max_epsilon,
                )  # fmt: skip
                continue
            ledger.step(noise)
            passed.append(residual)
        return tuple(passed)

    def _log(self, trainer: WorldTrainer, context: Context, privacy: Privacy, update_norm: float) -> None:
        name = context.node.name
        ledger = self.ledgers[name]
        scalars = {
            f"{name}/update_norm": update_norm,
            f"{name}/update_clipped": float(update_norm > privacy.clip_norm),
            f"{name}/epsilon": ledger.epsilon(privacy.delta),
            f"{name}/epsilon_rdp": ledger.epsilon_rdp(privacy.delta),
        }
        log_scalars(
            trainer,
            {tag: value for tag, value in scalars.items() if math.isfinite(value)},
            context.round,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"ledgers": {name: [list(run) for run in one.history] for name, one in self.ledgers.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.ledgers = {
            name: PrivacyLedger([(noise, rate, steps) for noise, rate, steps in history])
            for name, history in state_dict["ledgers"].items()
        }
