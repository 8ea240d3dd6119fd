"""Recovery of nodes whose training diverged."""

from __future__ import annotations

import logging
from typing import TypedDict

from worldlm.federation.messages import Download, joined
from worldlm.federation.parameters import copy_, is_finite
from worldlm.rounds import Context, LocalFit, RoundCallback
from worldlm.trainer import FederationCallback

log = logging.getLogger(__name__)


class _Memory(TypedDict, total=False):
    diverged: bool


class DivergenceRecovery(FederationCallback):
    """Restarts a node whose fit ended with weights that are not finite, from the next download of its federation.

    Without it the node would never recover. Its federation rejects its uploads, a soft download moves its weights only
    part of the way, and its optimizer keeps the broken moments.

    The node copies every part of the next download. Parts that do not travel, such as its own keys and values, are
    reset to the common initial weights. Its next fit starts with new optimizer moments. A federation that trains on
    data of its own continues from its merged weights.
    """

    memory_schema = _Memory

    def on_local_fit_end(self, context: Context) -> None:
        node = context.node
        is_single = node.is_leaf and context.world.topology.parent(node.name) is None
        if is_single or not self._sends_parts(context) or is_finite(context.state.parameters):
            return
        self.memory(context.state)["diverged"] = True
        log.warning("round %d: %s diverged; it will restart from its next download", context.round + 1, node.name)

    def on_route(self, context: Context, download: Download) -> Download:
        if self._has_diverged(context) and not is_finite(context.state.parameters):
            copy_(context.state.parameters, {**context.world.reference, **joined(download.parts)})
        return download

    def on_local_fit_start(self, context: Context, fit: LocalFit) -> None:
        if self._has_diverged(context):
            del self.memory(context.state)["diverged"]
            for optimizer in fit.optimizers:
                optimizer.state.clear()

    @staticmethod
    def _sends_parts(context: Context) -> bool:
        """Return whether federations send any part of the model."""
        return any(isinstance(callback, RoundCallback) and callback.parts for callback in context.callbacks)

    def _has_diverged(self, context: Context) -> bool:
        return bool(context.state.memory.get(self.state_key, {}).get("diverged"))
