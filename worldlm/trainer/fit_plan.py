"""The number of batches and optimizer steps that every node trains in one fit and in one round."""

from __future__ import annotations

from functools import cached_property

import lightning.pytorch as pl

from worldlm.rounds.program import num_visits
from worldlm.topology import Topology


class FitPlan:
    """Batches and optimizer steps of the data nodes if all nodes participate.

    Args:
        trainer: Provides `accumulate_grad_batches` and `limit_train_batches`.
        topology: Provides `num_local_steps` and the sub-rounds.
    """

    def __init__(self, trainer: pl.Trainer, topology: Topology) -> None:
        self._trainer = trainer
        self._topology = topology

    @cached_property
    def num_visits(self) -> dict[str, int]:
        """Number of fits of every data node in one round, by name."""
        return num_visits(self._topology)  # cached, because it compiles the whole round

    def num_batches(self, name: str) -> int:
        """Return the number of batches in one fit of a data node."""
        steps = self._topology.nodes[name].settings.num_local_steps
        assert steps is not None, "checked when the topology was read"
        num_batches, limit = steps * self._trainer.accumulate_grad_batches, self._trainer.limit_train_batches
        return min(num_batches, limit if isinstance(limit, int) else max(1, int(num_batches * limit)))

    def steps_per_fit(self, name: str) -> int:
        """Return the number of optimizer steps in one fit of a data node."""
        return -(-self.num_batches(name) // self._trainer.accumulate_grad_batches)

    def steps_of_run(self, name: str, extra_steps: int) -> int | float:
        """Return a node's optimizer steps over all rounds; infinity without a limit.

        Args:
            name: The node. For one that does not train, or an unknown one, it is the largest number of all nodes.
            extra_steps: Steps that the node made beyond its present plan.
        """
        rounds = self._trainer.max_epochs
        if rounds is None or rounds < 0:
            return float("inf")
        if not self.num_visits.get(name):
            return max(rounds, 1) * max(self.steps_per_round().values())
        return max(rounds, 1) * self.steps_per_fit(name) * self.num_visits[name] + extra_steps

    def steps_per_round(self) -> dict[str, int]:
        """Return the number of optimizer steps of every data node in one round, by name."""
        return {name: self.steps_per_fit(name) * visits for name, visits in self.num_visits.items()}
