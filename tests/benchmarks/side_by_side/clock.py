"""What a run of `worldlm fit` needs in order to be measured."""

from pathlib import Path
from typing import Any

from job import Workspace
from lightning.pytorch import Callback


class Clock(Callback):
    """Lets all nodes start from the job's initial weights, and notes the end of every round.

    What other callbacks do at the end of a round, after this one, counts in the next.
    """

    def __init__(self, folder: str, system: str, processes: int, threads: int) -> None:
        self.workspace = Workspace(Path(folder), system, processes, threads)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.workspace.load(pl_module.model)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self.workspace.end_round(lambda: self._weights(trainer))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self.workspace.report()

    @staticmethod
    def _weights(trainer: Any) -> dict[str, Any]:
        server = trainer.world.states[trainer.topology.root.name].parameters
        return {name.removeprefix("model."): tensor for name, tensor in server.items()}
