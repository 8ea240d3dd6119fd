"""The base class of WorldLM's callbacks: hooks of a round, and Lightning's hooks."""

from __future__ import annotations

from collections.abc import Iterable

import lightning.pytorch as pl
from lightning.pytorch import Callback

from worldlm.rounds.callback import RoundCallback


class FederationCallback(RoundCallback, Callback):
    """One part of a federated method, in a recipe's list of callbacks.

    The hooks of a round (`worldlm.rounds.RoundCallback`) receive a `Context`. Lightning's own hooks run as in any
    Lightning callback: `on_train_epoch_start` and `on_train_epoch_end` run at the start and the end of a round, and
    the hooks of a batch run within a node's fit.

    If several processes share a world, the hooks of a round run in the process that holds the node, and Lightning's
    hooks run in all processes. `trainer.world.states` then holds the nodes of other processes without tensors, as of
    the end of the last round.

    `state_dict` and `load_state_dict` save and restore state that belongs to the run and not to a node, as in any
    Lightning callback.
    """

    evaluates_nodes: bool = False
    """Whether the callback evaluates every node in `trainer.validate`."""

    def metric_names(self, trainer: pl.Trainer) -> Iterable[str]:
        """Return the names of the metrics that this callback adds to `trainer.callback_metrics` after a round."""
        return ()
