"""Update-level differential privacy for the nodes whose settings require it."""

import logging
import math
from dataclasses import replace

from worldlm.callbacks.noise import num_data_nodes
from worldlm.callbacks.privacy_ledgers import PrivacyLedgers
from worldlm.federation.messages import Download, Residual, Upload, joined
from worldlm.federation.parameters import Tensors, distance
from worldlm.federation.privacy import Sanitised, sanitise
from worldlm.federation.state import NodeState
from worldlm.federation.token_rows import row_shares
from worldlm.rounds import Context
from worldlm.topology import Node, Privacy

log = logging.getLogger(__name__)


class UpdatePrivacy(PrivacyLedgers):
    """Clips and noises the uploads of every node for which the topology sets `privacy`, and keeps its ledger.

    The unit of privacy is the node together with all nodes below it. The whole update is sanitised as one vector:
    `upload - download`, and for parts that the parent does not send, `upload - common initial weights`. The weights
    that the node itself keeps are not changed. Each upload is one release with sample rate 1.

    Each residual in an upload is clipped and noised too, as one more release: its origin sanitised it for its own
    guarantee, not for that of the federation it leaves. A residual that the budget does not allow is not sent. A node
    whose next upload would exceed its `max_epsilon` no longer takes part. Both are logged.
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
        # figures of the text, or of updates before this noise
        upload = replace(upload, metrics={}, row_counts={}, scale=0.0, noise_variance={}, reliability={})
        if not any(upload.parts.values()):
            return replace(upload, residuals=())  # nothing is released
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
        added = (privacy.noise_multiplier * privacy.clip_norm) ** 2
        variances = dict.fromkeys(parts, added) if added else {}
        return replace(upload, parts=parts, residuals=tuple(residuals), noise_variance=variances)

    def node_figures(self, node: Node, state: NodeState) -> dict[str, float]:
        privacy = node.settings.privacy
        if privacy is None:
            return {}
        ledger = self.ledger(state)
        return {"epsilon": ledger.epsilon(privacy.delta)} if ledger.history else {}

    def _release(self, context: Context, privacy: Privacy, model: Tensors, start: Tensors, purpose: str) -> Sanitised:
        """Clip and noise weights before they are sent, and add the release to the ledger."""
        self._spend(context.state, privacy.noise_multiplier)
        bounds = {"clip_norm": privacy.clip_norm, "noise_multiplier": privacy.noise_multiplier}
        safe = sanitise(model, start, **bounds, stream=context.noise(purpose))
        if not math.isfinite(safe.update_norm):
            message = "round %d: the update of %s has NaN or infinite values; only noise is sent"
            log.warning(message, context.round + 1, context.node.name)
        return safe

    def _release_residual(self, context: Context, privacy: Privacy, residual: Residual, start: Tensors) -> Residual:
        """Sanitise a residual for this node's guarantee; its origin sanitised it for its own guarantee only."""
        model = {**residual.keys, **residual.values}
        purpose = f"residual noise {residual.origin} {residual.round}"
        safe = self._release(context, privacy, model, start, purpose).tensors
        keys, values = ({name: safe[name] for name in part} for part in (residual.keys, residual.values))
        # public: an update is at most `clip_norm`, and its noise has `noise_multiplier` times that in each weight
        noise = privacy.noise_multiplier**2 * sum(tensor.numel() for tensor in model.values())
        num_nodes = num_data_nodes(context.world.topology.nodes[residual.origin]) / (1 + noise)
        scale = distance(keys, {name: context.world.reference[name] for name in keys})
        rows = {name: row_shares(None, len(shares)).float() for name, shares in residual.row_shares.items()}
        return replace(residual, keys=keys, values=values, row_shares=rows, share=0.0, num_nodes=num_nodes, scale=scale)

    def _is_affordable(self, context: Context, privacy: Privacy, residual: Residual) -> bool:
        if privacy.max_epsilon is None:
            return True
        after = self.ledger(context.state).epsilon_after(privacy.noise_multiplier, privacy.delta)
        if after > privacy.max_epsilon:
            log.warning(
                "the residual of %s is not sent: it would raise the epsilon of %s to %.2f, above its max_epsilon of %g",
                residual.origin, context.node.name, after, privacy.max_epsilon,
            )  # fmt: skip
        return after <= privacy.max_epsilon
