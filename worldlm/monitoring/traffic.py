"""Bytes sent over every edge, and the seconds they would take on its link."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule

from worldlm.federation.state import NodeState
from worldlm.rounds import World
from worldlm.topology.changes import Changes
from worldlm.trainer import FederationCallback, WorldTrainer


class Traffic(FederationCallback):
    """Logs, once per round, the bytes sent over every edge in each direction since the run began.

    If the topology describes a node's `link`, it also logs the seconds that the node's messages of the round would
    take. They are the latency of each message plus bytes divided by bandwidth, slowed down by jitter. It logs how many
    uploads of a node did not arrive, as soon as there is one.
    """

    enforces = frozenset({"link"})

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}  # up to the end of the last round

    def on_topology_change(self, world: World, changes: Changes, states: Mapping[str, NodeState]) -> None:
        self._seconds = {name: seconds for name, seconds in self._seconds.items() if name not in changes.left}

    def on_train_epoch_end(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        scalars: dict[str, float] = {}
        total = 0
        for name, node in trainer.topology.nodes.items():
            if trainer.topology.parent(name) is None or not trainer.run_settings.holds(name):
                continue
            state = trainer.world.states[name]
            scalars |= {f"{name}/bytes_down": state.bytes_down, f"{name}/bytes_up": state.bytes_up}
            if node.settings.link is not None and (new := state.link_seconds - self._seconds.get(name, 0.0)):
                scalars[f"{name}/link_seconds"] = new
                self._seconds[name] = state.link_seconds
            if state.num_missed:
                scalars[f"{name}/missed"] = state.num_missed
            total += state.bytes_down + state.bytes_up
        trainer.run_log.scalars({**scalars, "world/bytes": total}, trainer.world.round + 1)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": dict(self._seconds)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds = dict(state_dict.get("seconds", {}))
