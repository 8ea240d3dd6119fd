"""Update-level differential privacy at every edge whose topology asks for it."""

import logging
import math
from dataclasses import replace

import torch

from worldlm.callbacks.privacy_ledgers import PrivacyLedgers
from worldlm.federation.messages import Download, Residual, Upload, joined
from worldlm.federation.parameters import Tensors
from worldlm.federation.privacy import Sanitised, sanitise
from worldlm.federation.state import NodeState
from worldlm.rounds import Context
from worldlm.topology import Node, Privacy

log = logging.getLogger(__name__)


class UpdatePrivacy(PrivacyLedgers):
    """Clips and noises what leaves a node, as the node's `privacy` in the topology says, and keeps its ledger.

    The unit of privacy is the node with all that is below it. What is sanitised is the whole upload, as one vector:
    `upload - what the parent sent`, and for parts that the parent does not send, `upload - the common initial
    weights`. The node's own keys and values stay as they are at home. Every upload is one release of sample rate 1.
    A residual that climbs with it is clipped and noised too, and one release more: its origin sanitised it for its own
    guarantee, not for that of the federation it leaves. One that the budget forbids stays, and a node whose
    next upload would pass its `max_epsilon` takes no more part; both say so.
    """

    enforces = frozenset({"privacy"})

    def participates(self, context: Context) -> bool:
        privacy = context.node.settings.privacy
        if privacy is None or context.world.topology.parent(context.node.name) is None:
            return True
        return self._may_go_on(context, privacy, "upload")

    def on_sanitise(self, context: Context, upload: Upload, download: Download) -> Upload:
        privacy = context.node.settings.privacy
        if privacy is None:
            return upload
        upload = replace(upload, metrics={}, row_counts={})
        if not any(upload.parts.values()):  # what sends nothing spends nothing
            return upload
        start = {**context.world.reference, **joined(download.parts)}
        model = joined(upload.parts)
        safe = self._release(context, privacy, model, start, "upload noise")
        residuals = [
            self._release_residual(context, privacy, residual, start)
            for residual in upload.residuals
            if self._is_affordable(context, privacy, residual)
        ]
        norm, name = safe.update_norm, context.node.name
        scalars = {f"{name}/update_norm": norm, f"{name}/update_clipped": float(not norm <= privacy.clip_norm)}
        context.log(scalars)
        self._log_epsilon(context, privacy, "epsilon")
        parts = {part: {name: safe.tensors[name] for name in tensors} for part, tensors in upload.parts.items()}
        return replace(upload, parts=parts, residuals=tuple(residuals))

    def node_figures(self, node: Node, state: NodeState) -> dict[str, float]:
        privacy = node.settings.privacy
        if privacy is None:
            return {}
        ledger = self.ledger(state)
        return {"epsilon": ledger.epsilon(privacy.delta)} if ledger.history else {}

    def _release(self, context: Context, privacy: Privacy, model: Tensors, start: Tensors, purpose: str) -> Sanitised:
        """Clip and noise what is about to leave, and write it down."""
        self._spend(context.state, privacy.noise_multiplier)
        generator = torch.Generator().manual_seed(context.seed(purpose))
        bounds = {"clip_norm": privacy.clip_norm, "noise_multiplier": privacy.noise_multiplier}
        safe = sanitise(model, start, **bounds, generator=generator)
        if not math.isfinite(safe.update_norm):
            told = "round %d: what %s would send holds NaN or infinite values: it sends its noise alone"
            log.warning(told, context.round, context.node.name)
        return safe

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
        after = self.ledger(context.state).epsilon_after(privacy.noise_multiplier, privacy.delta)
        if after > privacy.max_epsilon:
            log.warning(
                "residual of %s stays in %s: it would bring it to epsilon %.2f, beyond its max_epsilon of %g",
                residual.origin, context.node.name, after, privacy.max_epsilon,
            )  # fmt: skip
        return after <= privacy.max_epsilon
