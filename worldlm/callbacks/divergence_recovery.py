"""A node that diverged takes part again."""

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
    """Lets a node whose fit ended in weights that are not finite start anew from what its federation sends it next.

    Else it would be lost for good: its federation refuses what it sends, while its own weights, where a soft download
    moves them only part of the way, and its optimizer's moments stay what they are. The node takes all that it is sent
    as it is; its own keys and values, where they do not travel, are again those that all nodes started from; the
    moments of its next fit are new. A federation that trains on data of its own goes on from what it merged.
    """

    memory_schema = _Memory

    def on_local_fit_end(self, context: Context) -> None:
        node = context.node
        lone = node.is_leaf and context.world.topology.parent(node.name) is None
        if lone or not self._travels(context) or is_finite(context.state.parameters):
            return
        self.memory(context.state)["diverged"] = True
        told = "round %d: %s diverged: it starts anew from what its federation sends it next"
        log.warning(told, context.round, node.name)

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
    def _travels(context: Context) -> bool:
        """Return whether a federation sends anything."""
        return any(isinstance(callback, RoundCallback) and callback.parts for callback in context.callbacks)

    def _has_diverged(self, context: Context) -> bool:
        return bool(context.state.memory.get(self.state_key, {}).get("diverged"))
