"""Update-level differential privacy at every edge whose topology asks for it."""

import logging
import math
from dataclasses import replace
from typing import Any

import torch

from worldlm.callbacks.scalars import log_scalars
from worldlm.federation.messages import Download, Residual, Upload
from worldlm.federation.parameters import Tensors
from worldlm.federation.privacy import PrivacyLedger, Sanitised, sanitise
from worldlm.loop import Context, FederationCallback, WorldTrainer
from worldlm.topology import Privacy

log = logging.getLogger(__name__)


class UpdatePrivacy(FederationCallback):
    """Clips and noises what leaves a node, as the node's `privacy` in the topology says, and keeps its ledger.

    The unit of privacy is the node with all that is below it. What is sanitised is the whole upload, as one vector:
    `upload - what the parent sent`, and for parts that the parent does not send, `upload - the common initial
    weights`. The node's own keys and values stay as they are at home. Every upload is one release of sample rate 1.
    A residual that climbs with it is clipped and noised too, and one release more: its origin sanitised it for its own
    guarantee, not for that of the federation it leaves. One that the budget forbids stays, and a node whose
    next upload would pass its `max_epsilon` takes no more part; both say so.
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
        safe = self._release(context, privacy, model, start, "upload noise")
        residuals = [
            self._release_residual(context, privacy, residual, start)
            for residual in upload.residuals
            if self._is_affordable(context, privacy, residual)
        ]
        self._log(trainer, context, privacy, safe.update_norm)
        parts = {part: {name: safe.tensors[name] for name in tensors} for part, tensors in upload.parts.items()}
        return replace(upload, parts=parts, metrics={}, residuals=tuple(residuals))

    def _release(self, context: Context, privacy: Privacy, model: Tensors, start: Tensors, purpose: str) -> Sanitised:
        """Clip and noise what is about to leave, and write it down."""
        self.ledgers.setdefault(context.node.name, PrivacyLedger()).step(privacy.noise_multiplier)
        generator = torch.Generator().manual_seed(context.seed(purpose))
        bounds = {"clip_norm": privacy.clip_norm, "noise_multiplier": privacy.noise_multiplier}
        return sanitise(model, start, **bounds, generator=generator)

    def _release_residual(self, context: Context, privacy: Privacy, residual: Residual, start: Tensors) -> Residual:
        """Sanitise a residual that leaves with the upload: its origin did so for itself, not for the federation."""
        model = {**residual.keys, **residual.values}
        purpose = f"residual noise {residual.origin} {residual.round}"
        safe = self._release(context, privacy, model, start, purpose).tensors
        keys, values = ({name: safe[name] for name in part} for part in (residual.keys, residual.values))
        return replace(residual, keys=keys, values=values)

    def _is_affordable(self, context: Context, privacy: Privacy, residual: Residual) -> bool:
        if privacy.max_epsilon is None:
            return True
        after = self.ledgers[context.node.name].epsilon_after(privacy.noise_multiplier, privacy.delta)
        if after > privacy.max_epsilon:
            log.warning(
                "residual of %s stays in %s: it would bring it to epsilon %.2f, beyond its max_epsilon of %g",
                residual.origin, context.node.name, after, privacy.max_epsilon,
            )  # fmt: skip
        return after <= privacy.max_epsilon

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
