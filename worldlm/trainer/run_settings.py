"""The settings of a run that the fit loop needs, besides Lightning's trainer."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from worldlm.federation.noise_key import NoiseKey
from worldlm.organisations.organisation import Organisation
from worldlm.rounds.method import Method
from worldlm.storage.node_store import NodeStore
from worldlm.topology import Node, Topology
from worldlm.trainer.fit_plan import FitPlan
from worldlm.trainer.run_log import RunLog


@dataclass(slots=True, kw_only=True)
class RunSettings:
    """The federation of a run, and how its processes share it."""

    topology: Topology
    """The nodes and their federations."""
    seed: int
    """Seed of all random draws of the federation."""
    method: Method
    """The callbacks of the current fit."""
    plan: FitPlan
    """How much every node trains."""
    log: RunLog
    """Writes metrics and texts to the loggers."""
    make_store: Callable[[Collection[str]], NodeStore]
    """Makes the store of waiting nodes, given the names of the nodes that this process holds."""
    agree_on_folder: Callable[[str | None], None]
    """Makes all processes use the folder of process 0, and sets `noise_key` if the topology demands privacy, given the
    fingerprint of the checkpoint's key."""
    collect_callbacks: Callable[[], None]
    """Makes `method` of the callbacks that the trainer has now, and checks it."""
    noise_key: NoiseKey | None = None
    """The noise key of the current fit."""
    num_ranks: int = 1
    """Processes that share the world."""
    devices_per_node: int = 1
    """Processes that train one node together."""
    share_memory: bool | None = None
    """See `NodeSlot`."""
    organisation: Organisation | None = None
    """The one node that this run holds; None if the run holds the whole world."""

    @property
    def data_nodes(self) -> list[Node]:
        """The nodes with text that this run trains or evaluates."""
        return [node for node in self.topology.data_nodes if self.holds(node.name)]

    def holds(self, name: str) -> bool:
        """Return whether a node is in this run, and not at another organisation."""
        return self.organisation is None or name == self.organisation.node

    @property
    def main_node(self) -> str:
        """The node whose weights Lightning saves as the model."""
        return self.topology.root.name if self.organisation is None else self.organisation.node

    @property
    def saves_within_round(self) -> bool:
        """Whether a checkpoint can be saved within a round: only if no message is on its way to another process."""
        return self.num_ranks == 1 and self.organisation is None
