"""Evaluation of every node after it merged and after it trained: perplexity and bits per byte."""

import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor
from torch.optim import Optimizer

from worldlm.federation.state import NodeState
from worldlm.models import Evaluation
from worldlm.monitoring.node_validation import NodeValidation, Score, evaluate_node
from worldlm.rounds import Context, LocalFit, World
from worldlm.topology import Node
from worldlm.topology.changes import Changes
from worldlm.trainer import WorldTrainer
from worldlm.trainer.strategy import WorldStrategy
from worldlm.trainer.validation import run_validation

log = logging.getLogger(__name__)

MOMENTS = ("before", "after_merge", "after_fit")


class NodeMetrics(NodeValidation):
    """Evaluates every node and logs its perplexity by round, and its training metrics by its own local steps.

    A leaf is evaluated on its own held-out text twice per round: `after_merge`, when it has merged the download, and
    `after_fit`, when it has trained. A federation is evaluated after it has aggregated, on the held-out text of all
    data nodes at and below it. The trainer's `check_val_every_n_epoch` sets the rounds that are evaluated, and
    `limit_val_batches` the number of batches.

    Callbacks that monitor a metric can use the means over the data nodes, `perplexity_after_merge` and
    `perplexity_after_fit`, or the values of one node, such as `NAME/perplexity_after_merge`. In `trainer.validate` it
    does what `NodeValidation` does.

    A module measures its perplexity by a method `evaluate`, as `LanguageModule` does. Without one, its
    `validation_step` is run, and each metric that it logs takes the place of the perplexity. Callbacks can then also
    use the name of the metric alone: it is the mean over the data nodes after their fits.

    The loss, learning rate and tokens per second of a node are logged every `log_every_n_steps` of its own steps. The
    loss is the mean over all batches of the step, and the learning rate is the one that the step used.
    """

    memory_schema = dict[str, list[float]]

    def __init__(self) -> None:
        super().__init__()
        self.last_loss = math.nan
        """Of the last logged step of this fit."""
        self.tokens_per_second = math.nan
        self._clock = (0.0, 0)
        self._losses: list[Tensor] = []
        """Of the batches since the last optimizer step."""
        self._lr: float | None = None
        """Of the optimizer step that the current batch ends; None if it ends none."""
        self._trainer: WorldTrainer | None = None
        self._held_out: tuple[Any, dict[str, float]] = (None, {})
        """The loaders of held-out text, and the number of batches of each."""

    def metric_names(self, trainer: WorldTrainer) -> list[str]:  # type: ignore[override]
        if not trainer.enable_validation or not hasattr(trainer.lightning_module, "evaluate"):
            return []
        nodes = [node for node in trainer.topology.nodes.values() if _is_measured(trainer, node)]
        trained = [node.name for node in trainer.data_nodes if not node.listens]
        after_merge = [f"{node.name}/perplexity_after_merge" for node in nodes]
        after_fit = [f"{name}/perplexity_after_fit" for name in trained]
        return ["perplexity_after_merge", "perplexity_after_fit", *after_merge, *after_fit]

    def setup(self, trainer: WorldTrainer, pl_module: LightningModule, stage: str) -> None:  # type: ignore[override]
        self._trainer = trainer

    def scores(self, state: NodeState) -> dict[str, Score]:
        """Return a node's last scores by moment: `before` (the initial weights), `after_merge`, `after_fit`."""
        return {moment: Score(*pair) for moment, pair in self.memory(state).items() if moment in MOMENTS}

    def own_metrics(self, state: NodeState) -> dict[str, float]:
        """Return a node's last values of the metrics that the module logs, such as `val_loss_after_fit`."""
        return {name: values[0] for name, values in self.memory(state).items() if name not in MOMENTS}

    def node_figures(self, node: Node, state: NodeState) -> dict[str, float]:
        figures = self.own_metrics(state)
        for moment, score in self.scores(state).items():
            figures[moment] = score.perplexity
            if not math.isnan(score.bits_per_byte):
                figures[f"{moment} bits"] = score.bits_per_byte
        return figures

    def on_topology_change(self, world: World, changes: Changes, states: Mapping[str, NodeState]) -> None:
        for name in changes.new_texts:
            states[name].memory.pop(self.state_key, None)  # scores on the old text

    # ------------------------------------------------------------------ evaluation

    def _score(self, context: Context, moment: str, node: Node, cache: dict[str, Evaluation] | None = None) -> None:
        trainer = self._trainer
        assert trainer is not None, "setup runs before the first round"
        if not _is_measured(trainer, node):
            return
        trainer.fit_loop.slot.load_weights(context.node.name, context.state)
        loaders = trainer.fit_loop.val_loaders()
        if self._held_out[0] is not loaders:  # once, not for every node
            self._held_out = loaders, dict(zip(loaders, trainer.num_val_batches, strict=True))
        name, limits = context.node.name, self._held_out[1]
        step = trainer.current_epoch if moment == MOMENTS[0] else None
        if not hasattr(trainer.lightning_module, "evaluate"):
            below = {data_node.name: loaders[data_node.name] for data_node in node.walk() if data_node.name in loaders}
            own = run_validation(trainer, trainer.fit_loop.epoch_loop.val_loop, below, limits)
            if not own and moment == MOMENTS[0]:
                log.warning("validation_step of %s logs no metric", type(trainer.lightning_module).__name__)
            self.memory(context.state).update({f"{metric}_{moment}": [value] for metric, value in own.items()})
            context.log({f"{name}/{metric}_{moment}": value for metric, value in own.items()}, step)
            return
        score = evaluate_node(trainer, node, loaders, limits, cache)
        self.memory(context.state)[moment] = [score.perplexity, score.bits_per_byte]
        scalars = {f"{name}/perplexity_{moment}": score.perplexity}
        if not math.isnan(score.bits_per_byte):
            scalars[f"{name}/bits_per_byte_{moment}"] = score.bits_per_byte
        context.log(scalars, step)

    def on_train_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        if not trainer.fit_loop.val_loaders():
            return
        is_initial = not any(state.num_steps for state in trainer.world.states.values())
        cache: dict[str, Evaluation] = {}
        for node in trainer.topology.nodes.values():
            context = trainer.context(node.name)
            if trainer.world.transport.is_local(node.name) and not self.memory(context.state):
                self._score(context, "before", node, cache if is_initial else None)

    def _evaluates(self) -> bool:
        return self._trainer is not None and self._trainer.fit_loop.evaluates

    def on_merged(self, context: Context) -> None:
        if self._evaluates():
            self._score(context, "after_merge", context.node)

    def on_local_fit_end(self, context: Context) -> None:
        if self._evaluates():
            without_children = Node(name=context.node.name, corpus=context.node.corpus, settings=context.node.settings)
            self._score(context, "after_fit", without_children)

    def on_train_epoch_end(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        metrics: dict[str, float] = {}
        scores = {name: self.scores(state) for name, state in trainer.world.states.items()}
        for moment in MOMENTS[1:]:
            values = {name: of_node[moment].perplexity for name, of_node in scores.items() if moment in of_node}
            metrics |= {f"{name}/perplexity_{moment}": value for name, value in values.items()}
            of_data = [values[node.name] for node in trainer.data_nodes if node.name in values]
            if of_data:
                metrics[f"perplexity_{moment}"] = sum(of_data) / len(of_data)
        metrics |= self._own_metrics_of_all(trainer)
        # `log_dict` would keep an object for each metric, and Lightning looks at all of them after every batch
        values_of_all = torch.tensor(list(metrics.values()), device=pl_module.device).unbind()
        trainer.callback_metrics.update(zip(metrics, values_of_all, strict=True))
        means = {f"world/mean_{name}": value for name, value in metrics.items() if "/" not in name}
        if self._evaluates():
            trainer.run_log.scalars(means, trainer.world.round + 1)

    def _own_metrics_of_all(self, trainer: WorldTrainer) -> dict[str, float]:
        """Return the metrics that the module logs: of every data node, and their means."""
        metrics: dict[str, float] = {}
        own = {node.name: self.own_metrics(trainer.world.states[node.name]) for node in trainer.data_nodes}
        for metric in dict.fromkeys(metric for values in own.values() for metric in values):
            values = {name: of_node[metric] for name, of_node in own.items() if metric in of_node}
            mean = sum(values.values()) / len(values)
            metrics |= {f"{name}/{metric}": value for name, value in values.items()} | {metric: mean}
            if metric.endswith(f"_{MOMENTS[-1]}"):
                metrics[metric.removesuffix(f"_{MOMENTS[-1]}")] = mean
        return metrics

    # ------------------------------------------------------------------ training

    def on_local_fit_start(self, context: Context, fit: LocalFit) -> None:
        self._clock = (time.perf_counter(), 0)
        self._losses, self.last_loss = [], math.nan

    def on_before_optimizer_step(  # type: ignore[override]
        self, trainer: WorldTrainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        self._lr = float(optimizer.param_groups[0]["lr"])  # the schedule changes it before the batch ends

    def on_train_batch_end(  # type: ignore[override]
        self,
        trainer: WorldTrainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        accumulate = trainer.accumulate_grad_batches
        size = len(batch) if isinstance(batch, Tensor) else extract_batch_size(batch)
        self._clock = (self._clock[0], self._clock[1] + size)
        if size and outputs:  # Poisson sampling may draw no example, and a training_step may return no loss
            self._losses.append(outputs["loss"].detach() * accumulate)  # Lightning has divided it
        if self._lr is None:  # gradients accumulate
            return
        (losses, lr), (self._losses, self._lr) = (self._losses, self._lr), ([], None)
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        name = trainer.active_node
        num_steps = trainer.world.states[name].num_steps + -(-(batch_idx + 1) // accumulate)
        if not every or num_steps % every:
            return
        seq_len = getattr(trainer.fit_loop.loaders[name].dataset, "seq_len", 1)
        now = time.perf_counter()
        self.tokens_per_second = self._clock[1] * seq_len / max(now - self._clock[0], 1e-9)
        self._clock = (now, 0)
        scalars = {f"{name}/lr": lr, f"{name}/tokens_per_second": self.tokens_per_second}
        if losses:
            loss, strategy = torch.stack(losses).mean(), trainer.strategy
            self.last_loss = float(strategy.team_mean(loss) if isinstance(strategy, WorldStrategy) else loss)
            scalars[f"{name}/loss"] = self.last_loss
        trainer.run_log.scalars(scalars, num_steps)


def _is_measured(trainer: WorldTrainer, node: Node) -> bool:
    """Return whether this run has held-out text of a node, or of one below it."""
    run = trainer.run_settings
    return run.organisation is None or (run.holds(node.name) and node.holds_data)
