"""How much every node trains in one fit and in one round."""

from __future__ import annotations

from functools import cached_property

import lightning.pytorch as pl

from worldlm.rounds.program import num_visits
from worldlm.topology import Topology


class FitPlan:
    """Batches and optimizer steps of the data nodes, with all nodes participating.

    Args:
        trainer: Its `accumulate_grad_batches` and `limit_train_batches` count.
        topology: Its `num_local_steps` and sub-rounds count.
    """

    def __init__(self, trainer: pl.Trainer, topology: Topology) -> None:
        self._trainer = trainer
        self._topology = topology

    @cached_property
    def num_visits(self) -> dict[str, int]:
        """Fits of every data node in one round."""
        return num_visits(self._topology)  # compiles the whole round

    def num_batches(self, name: str) -> int:
        """Return the batches of one fit of a node."""
        steps = self._topology.nodes[name].settings.num_local_steps
        assert steps is not None, "checked when the topology was read"
        number, limit = steps * self._trainer.accumulate_grad_batches, self._trainer.limit_train_batches
        return min(number, limit if isinstance(limit, int) else max(1, int(number * limit)))

    def steps_per_fit(self, name: str) -> int:
        """Return a data node's optimizer steps in one fit."""
        return -(-self.num_batches(name) // self._trainer.accumulate_grad_batches)

    def steps_per_round(self) -> dict[str, int]:
        """Return every data node's optimizer steps in one round."""
        return {name: self.steps_per_fit(name) * visits for name, visits in self.num_visits.items()}
