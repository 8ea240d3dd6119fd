"""What an organisation is told about the models of its children, and measures about the model of its parent."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, TypedDict

import torch
from lightning.pytorch import LightningModule

from worldlm.federation.messages import Download, Upload, joined
from worldlm.federation.state import NodeState
from worldlm.monitoring.node_metrics import MOMENTS, NodeMetrics
from worldlm.monitoring.node_validation import evaluate_node
from worldlm.rounds import Context
from worldlm.topology import Node
from worldlm.trainer import FederationCallback, WorldTrainer

RECEIVED = "received"
"""The moment at which a node has received a download and not merged it yet."""


class _State(TypedDict):
    own: float
    reported: dict[str, dict[str, float]]


class OrganisationScores(FederationCallback):
    """Measures the model that a node receives, and reports its perplexities to its parent.

    An organisation that leads a federation cannot measure its model on the text of others. So each child measures the
    model that it receives on its own held-out text, before it merges it, and reports this perplexity together with
    those of its own model. A federation reports the mean over all nodes below it that have reported. Private nodes
    report nothing: `UpdatePrivacy` and `ExamplePrivacy` remove all metrics.

    `worldlm serve` and `worldlm join` add this callback.
    """

    def __init__(self) -> None:
        self.reported: dict[str, dict[str, float]] = {}
        """Child -> the perplexities that it reported when nodes were evaluated last, by moment."""
        self._own = math.nan
        """Perplexity of the model that this node received last, on its own text."""
        self._trainer: WorldTrainer | None = None

    def setup(self, trainer: WorldTrainer, pl_module: LightningModule, stage: str) -> None:  # type: ignore[override]
        self._trainer = trainer

    def received(self, node: Node) -> float:
        """Return the perplexity of the models that a node, and the nodes below it, have received.

        It is the geometric mean over the nodes that have measured or reported it, where a child counts for the data
        nodes at and below it. NaN if there are none.

        Args:
            node: The node of this organisation.
        """
        values = {node.name: self._own} | {name: found.get(RECEIVED, math.nan) for name, found in self.reported.items()}
        weights = {child.name: _num_data_nodes(child) for child in node.children} | {node.name: 1}
        known = {name: value for name, value in values.items() if name in weights and not math.isnan(value)}
        if not known:
            return math.nan
        total = math.fsum(weights[name] * math.log(value) for name, value in known.items())
        return math.exp(total / sum(weights[name] for name in known))

    def _evaluates(self) -> bool:
        return self._trainer is not None and self._trainer.fit_loop.evaluates

    def on_receive(self, context: Context, download: Download) -> None:
        trainer, node = self._trainer, context.node
        if trainer is None or not self._evaluates() or not hasattr(trainer.lightning_module, "evaluate"):
            return
        loaders, slot = trainer.fit_loop.val_loaders(), trainer.fit_loop.slot
        if node.name not in loaders:
            return
        limits = dict(zip(loaders, trainer.num_val_batches, strict=True))
        slot.load_weights(node.name, NodeState(parameters={**context.state.parameters, **joined(download.parts)}))
        alone = Node(name=node.name, corpus=node.corpus, settings=node.settings)
        self._own = evaluate_node(trainer, alone, loaders, limits).perplexity
        slot.load_weights(node.name, context.state)
        self._log(context)

    def on_upload(self, context: Context, upload: Upload) -> Upload:
        if not self._evaluates():
            return upload
        measured = context.find(NodeMetrics)
        scores = {} if measured is None else measured.scores(context.state)
        metrics = {moment: score.perplexity for moment, score in scores.items()}
        metrics[RECEIVED] = self.received(context.node)
        known = {name: value for name, value in metrics.items() if not math.isnan(value)}
        return replace(upload, metrics={**upload.metrics, **known})  # a private node removes them again

    def after_aggregate(self, context: Context, uploads: list[Upload]) -> None:
        for upload in uploads:
            found = {moment: upload.metrics[moment] for moment in (*MOMENTS, RECEIVED) if moment in upload.metrics}
            found = {moment: value for moment, value in found.items() if math.isfinite(value) and value > 0}
            if found:
                self.reported[upload.node] = found
                context.log({f"{upload.node}/perplexity_{moment}": value for moment, value in found.items()})
        if self._evaluates():
            senders = {upload.node for upload in uploads}
            self.reported = {name: found for name, found in self.reported.items() if name in senders}
            self._log(context)

    def _log(self, context: Context) -> None:
        value = self.received(context.node)
        if not math.isnan(value):
            context.log({f"{context.node.name}/perplexity_{RECEIVED}": value})

    def node_figures(self, node: Node, state: NodeState) -> dict[str, float]:
        value = self.received(node)
        return {} if math.isnan(value) else {RECEIVED: value}

    def on_train_epoch_end(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        name = trainer.run_settings.main_node
        value = self.received(trainer.topology.nodes[name])
        if not math.isnan(value):
            metrics = dict.fromkeys((f"{name}/perplexity_{RECEIVED}", f"perplexity_{RECEIVED}"), torch.tensor(value))
            trainer.callback_metrics.update(metrics)

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        return dict(_State(own=self._own, reported=self.reported))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._own = float(state_dict["own"])
        self.reported = {name: dict(found) for name, found in state_dict["reported"].items()}


def _num_data_nodes(node: Node) -> int:
    """Return the number of data nodes at and below a node."""
    return sum(below.corpus is not None for below in node.walk())
