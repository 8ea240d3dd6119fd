"""Evaluation of nodes on held-out text, and the callback that does it in `trainer.validate`."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import track
from rich.table import Table

from worldlm.checkpoint.validate import check_weights
from worldlm.federation.parameters import Tensors
from worldlm.models import Evaluation
from worldlm.runs.scores import score_text
from worldlm.topology import Node
from worldlm.topology.errors import join_names
from worldlm.trainer import FederationCallback, WorldTrainer


@dataclass(frozen=True, slots=True)
class Score:
    """The result of a model on a text."""

    perplexity: float
    """Per token."""
    bits_per_byte: float
    """NaN if the size of the text in bytes is unknown."""


def pool(evaluations: Iterable[tuple[Evaluation, float | None]]) -> Score:
    """Combine evaluations on several texts, weighted by their tokens; each comes with its bytes per token or None."""
    nats = tokens = bytes_ = 0.0
    for evaluation, bytes_per_token in evaluations:
        nats += evaluation.nats * evaluation.num_tokens
        tokens += evaluation.num_tokens
        bytes_ += math.nan if bytes_per_token is None else evaluation.num_tokens * bytes_per_token
    return Score(math.exp(min(nats / tokens, 700.0)), nats / math.log(2) / bytes_)


def evaluate_node(
    trainer: WorldTrainer,
    node: Node,
    loaders: Mapping[str, Iterable[Any]],
    limits: Mapping[str, float],
    cache: dict[str, Evaluation] | None = None,
) -> Score:
    """Evaluate the live module on the held-out text of the data nodes at and below a node.

    Args:
        trainer: Provides the module, and the data module with the bytes per token.
        node: The node at which the evaluation starts.
        loaders: Batches of held-out text, by data node.
        limits: Number of batches to evaluate, by data node.
        cache: Evaluations of the same weights by data node; new ones are added.
    """
    module: Any = trainer.lightning_module
    sizes = getattr(getattr(trainer, "datamodule", None), "bytes_per_token", {})
    names = [data_node.name for data_node in node.walk() if data_node.name in loaders]
    cache = {} if cache is None else cache
    with trainer.precision_plugin.forward_context():
        for name in names:
            if name not in cache:
                cache[name] = module.evaluate(_batches(loaders[name], limits[name]))
    return pool((cache[name], sizes.get(name)) for name in names)


def _batches(loader: Iterable[Any], limit: float) -> Iterable[Any]:
    return loader if math.isinf(limit) else islice(loader, int(limit))


class NodeValidation(FederationCallback):
    """Evaluates every node on the held-out text at and below it, in `trainer.validate`.

    The weights are those of the checkpoint if there is one, else those of the nodes after a fit, else the module's own.
    """

    evaluates_nodes = True

    def __init__(self) -> None:
        self.validated: dict[str, Score] = {}
        """The result of the last `trainer.validate`, by node."""
        self._saved: dict[str, Any] = {}

    def on_load_checkpoint(
        self,
        trainer: WorldTrainer,  # type: ignore[override]
        pl_module: LightningModule,
        checkpoint: dict[str, Any],
    ) -> None:
        if trainer.state.fn != TrainerFn.VALIDATING:
            return
        states = checkpoint["loops"]["fit_loop"]["state_dict"]["world"]["states"]
        self._saved = {name: state["parameters"] for name, state in states.items()}
        model: Tensors = dict(pl_module.named_parameters())
        for name in (name for name in trainer.topology.nodes if name in self._saved):
            check_weights(f"of {name}", self._saved[name], model)

    def on_validation_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        saved, self._saved, self.validated = self._saved, {}, {}
        if not hasattr(pl_module, "evaluate"):
            return  # Lightning runs its validation_step with the module's own weights
        if saved and (missing := [name for name in trainer.topology.nodes if name not in saved]):
            raise ValueError(f"the checkpoint has no node {join_names(missing)}; it has {join_names(saved)}")
        loaders: Any = trainer.val_dataloaders
        limits = dict(zip(loaders, trainer.num_val_batches, strict=True))
        before = {name: value.clone() for name, value in pl_module.state_dict().items()}
        slot = trainer.fit_loop._slot
        if saved or (slot is not None and slot.module is not pl_module):
            slot = None
        console = Console(stderr=True)
        nodes = trainer.topology.nodes
        with torch.inference_mode(False):  # tensors read in inference mode could not be trained later
            for name in track(nodes, "evaluating", console=console, transient=True, disable=not console.is_terminal):
                if saved:
                    pl_module.load_state_dict(saved[name], strict=False)
                elif slot is not None:
                    slot.load_weights(name, trainer.world.states[name])
                self.validated[name] = evaluate_node(trainer, nodes[name], loaders, limits)
            if saved:
                pl_module.load_state_dict(before)
            elif slot is not None:  # the live module is the root's between rounds
                slot.load_weights(trainer.run_settings.main_node, trainer.world.states[trainer.run_settings.main_node])

    def on_validation_end(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        if trainer.state.fn != TrainerFn.VALIDATING:
            return
        scores = {f"{name}/perplexity": score.perplexity for name, score in self.validated.items()}
        scores |= {f"{name}/bits_per_byte": score.bits_per_byte for name, score in self.validated.items()}
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in scores.items()})
        if not (self.validated and trainer.validate_loop.verbose):
            return
        table = Table("node", "perplexity", "bits per byte", title=trainer.topology.name)
        for name, score in self.validated.items():
            table.add_row(name, score_text(score.perplexity), f"{score.bits_per_byte:.3f}")
        Console().print(table)
