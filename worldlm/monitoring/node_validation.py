"""Evaluation of every node of a checkpoint."""

from typing import Any

from lightning.pytorch import LightningModule
from rich.console import Console
from rich.progress import track
from rich.table import Table

from worldlm.checkpoint.validate import check_weights
from worldlm.federation.parameters import Tensors
from worldlm.monitoring.node_metrics import Score, evaluate_node
from worldlm.runs.scores import score_text
from worldlm.topology.errors import join_names
from worldlm.trainer import FederationCallback, WorldTrainer


class NodeValidation(FederationCallback):
    """Evaluates every node of a checkpoint on the held-out text at and below it, in `trainer.validate`."""

    def __init__(self) -> None:
        self.scores: dict[str, Score] = {}
        self._weights: dict[str, Any] = {}

    def on_load_checkpoint(
        self,
        trainer: WorldTrainer,  # type: ignore[override]
        pl_module: LightningModule,
        checkpoint: dict[str, Any],
    ) -> None:
        states = checkpoint["loops"]["fit_loop"]["state_dict"]["world"]["states"]
        self._weights = {name: state["parameters"] for name, state in states.items()}
        model: Tensors = dict(pl_module.named_parameters())
        for name in (name for name in trainer.topology.nodes if name in self._weights):
            check_weights(f"of {name}", self._weights[name], model)

    def on_validation_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        if missing := [name for name in trainer.topology.nodes if name not in self._weights]:
            raise ValueError(f"the checkpoint has no node {join_names(missing)}; it has {join_names(self._weights)}")
        loaders: Any = trainer.val_dataloaders
        limits = dict(zip(loaders, trainer.num_val_batches, strict=True))
        before = {name: value.clone() for name, value in pl_module.state_dict().items()}
        console = Console(stderr=True)
        nodes = trainer.topology.nodes
        for name in track(nodes, "evaluating", console=console, transient=True, disable=not console.is_terminal):
            node = nodes[name]
            pl_module.load_state_dict(self._weights[name], strict=False)
            self.scores[name] = evaluate_node(trainer, node, loaders, limits)
        pl_module.load_state_dict(before)

    def on_validation_end(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        table = Table("node", "perplexity", "bits per byte", title=trainer.topology.name)
        for name, score in self.scores.items():
            table.add_row(name, score_text(score.perplexity), f"{score.bits_per_byte:.3f}")
        Console().print(table)
