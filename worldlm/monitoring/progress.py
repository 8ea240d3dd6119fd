"""Progress of a run: a live bar in a terminal, otherwise one line per round."""

import math
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from worldlm.monitoring.node_metrics import MOMENTS, NodeMetrics
from worldlm.runs.scores import mean_text
from worldlm.trainer import WorldTrainer


class RoundProgress(ProgressBar):
    """Shows the world, the round, the node that trains, its loss and tokens per second.

    In a run of several processes, the bar shows the nodes of process 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._done = 0
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        if not (self._enabled and self._console.is_terminal):
            return
        visits, is_local = trainer.num_visits, trainer.world.transport.is_local
        batches = {name: number * trainer.plan.num_batches(name) for name, number in visits.items() if is_local(name)}
        rounds = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} batches"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        total = rounds * sum(batches.values()) if rounds else None
        self._task = self._bar.add_task(trainer.topology.name, total=total)
        self._done = sum(state.num_batches for name, state in trainer.world.states.items() if is_local(name))
        self._bar.start()

    def on_train_batch_end(  # type: ignore[override]
        self,
        trainer: WorldTrainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._bar is None:
            return
        self._done += 1
        metrics = trainer.find_callback(NodeMetrics)
        figures = ""
        if metrics is not None and not math.isnan(metrics.last_loss):
            figures = f" loss {metrics.last_loss:.3f}, {metrics.tokens_per_second:,.0f} tokens/s"
        description = f"{trainer.topology.name} {_round(trainer)} [bold]{trainer.active_node}[/]{figures}"
        self._bar.update(self._task, completed=self._done, description=description)

    def on_train_epoch_end(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        if not self._enabled:
            return
        metrics = trainer.callback_metrics
        nodes = trainer.data_nodes or [trainer.topology.nodes[trainer.run_settings.main_node]]
        figures = []
        # not what other callbacks log, such as a learning rate; means of an earlier round are not repeated
        for name in sorted(metrics) if trainer.fit_loop.evaluates else ():
            tags = (f"/{name}", f"/{name}_{MOMENTS[-1]}")
            if number := sum(any(node.name + tag in metrics for tag in tags) for node in nodes):
                text = mean_text(float(metrics[name]), number, len(nodes))
                figures.append(f"{name.replace('_', ' ')} {text}")
        line = f"{_round(trainer)}: {'mean ' + ', '.join(figures) if figures else 'not evaluated'}"
        (self._bar.console if self._bar else self._console).print(line, highlight=False, soft_wrap=True)

    def on_train_end(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        self._stop()

    def on_exception(self, trainer: Any, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _round(trainer: WorldTrainer) -> str:
    """Return the number of the round, and of how many if the run has an end."""
    number, rounds = trainer.world.round + 1, trainer.max_epochs
    return f"round {number}/{rounds}" if rounds is not None and rounds > 0 else f"round {number}"
