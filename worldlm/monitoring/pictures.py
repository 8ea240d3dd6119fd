"""The run as pictures on its TensorBoard, and an order for its curves."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule

from worldlm.monitoring.record import Record
from worldlm.runs.results import RunRecord
from worldlm.topology import Node, Topology
from worldlm.trainer import FederationCallback, WorldTrainer

MAX_FEDERATIONS = 24
"""Federations that have charts of their own."""

STEPS_BETWEEN = 100
"""Local steps, at the least, between two looks at a run that come by default: one takes as long as a few steps."""

_INCHES = 6.0  # the board shows pictures small


class Pictures(FederationCallback):
    """Draws the run on its TensorBoard; without one it does nothing.

    Under Images: the world with every node's perplexity, bytes on every edge, where the residuals of the rounds since
    the last picture went, what federations attended to in every round so far, and privacy spent. Under Custom Scalars:
    the world's curves, then those of every federation with its participants beside it.

    Args:
        every_n_rounds: Rounds between two pictures; by default as `rounds_between` says: five are drawn in a run, fewer
            in a short one. The last round is always drawn.

    Raises:
        ValueError: If every_n_rounds is below 1, or no Record is among the callbacks.
    """

    def __init__(self, every_n_rounds: int | None = None) -> None:
        if every_n_rounds is not None and every_n_rounds < 1:
            raise ValueError(f"every_n_rounds must be at least 1, got {every_n_rounds}")
        self.every_n_rounds = every_n_rounds
        self._drawn = -1

    def setup(self, trainer: WorldTrainer, pl_module: LightningModule, stage: str) -> None:  # type: ignore[override]
        if trainer.find_callback(Record) is None:
            raise ValueError("Pictures needs Record among trainer.callbacks: it draws what is recorded")

    def on_train_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        for board in trainer.run_log.tensorboard_writers():
            board.add_custom_scalars(layout(trainer.topology))

    def on_train_epoch_end(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        if is_due(trainer, self.every_n_rounds):
            self._draw(trainer)

    def _draw(self, trainer: WorldTrainer) -> None:
        if not (writers := trainer.run_log.tensorboard_writers()):
            return
        recorder = trainer.find_callback(Record)
        assert recorder is not None, "checked when the run was set up"
        record = recorder.so_far(trainer)
        for name, figure in draw(record, since=self._drawn + 1).items():
            picture = _pixels(figure)
            for board in writers:
                board.add_image(f"pictures/{name}", picture, trainer.world.round, dataformats="HWC")
        self._drawn = trainer.world.round

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self._drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._drawn = int(state_dict["drawn"])


def rounds_between(trainer: WorldTrainer) -> int:
    """Return how many rounds lie between two looks at a run where nobody says.

    A fifth of the run, or ten rounds where it has no end; and as many as it takes for the node that trains most to make
    `STEPS_BETWEEN` local steps.
    """
    last, steps = trainer.max_epochs, max(trainer.steps_per_round().values())
    fifth = 10 if last is None or last < 1 else -(-last // 5)
    return max(fifth, -(-STEPS_BETWEEN // max(steps, 1)))


def is_due(trainer: WorldTrainer, every_n_rounds: int | None) -> bool:
    """Whether one looks at a run in this round: every so many, None as `rounds_between` says, and in the last."""
    finished = trainer.world.round + 1
    return finished == trainer.max_epochs or finished % (every_n_rounds or rounds_between(trainer)) == 0


def draw(record: RunRecord, since: int = 0) -> dict[str, Any]:
    """Draw what there is to draw of a run at the end of a round.

    Args:
        record: The run so far.
        since: The first round whose residuals are shown.

    Returns:
        Figures of matplotlib, by name.
    """
    from worldlm.plots.boxes import of_names, of_perplexity, of_traffic  # late: pictures take a second to import
    from worldlm.plots.budget import budget
    from worldlm.plots.heatmaps import attention
    from worldlm.plots.world import draw_world

    last = record.rounds[-1]
    number = last["round"] + 1
    figures = {"perplexity": draw_world(of_perplexity(record), f"held-out perplexity after round {number}")}
    if any("bytes_up" in figures for figures in last["nodes"].values()):
        figures["bytes"] = draw_world(of_traffic(record), f"bytes sent up to round {number}")
    if any(one["routes"] for one in record.rounds):
        routes = sum((record.routes_of(one) for one in record.rounds if one["round"] >= since), Counter())
        title = f"residuals of rounds {since + 1} to {number}" if since + 1 < number else f"residuals of round {number}"
        figures["residuals"] = draw_world(of_names(record), title, routes)
    if any(one["attention"] for one in record.rounds):
        figures["attention"] = attention([record], _INCHES)
    if any(kind in figures for figures in last["nodes"].values() for kind in ("epsilon", "example_epsilon")):
        figures["privacy"] = budget(record, _INCHES)
    return figures


def _pixels(figure: Any) -> np.ndarray[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(100)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]


def layout(topology: Topology) -> dict[str, dict[str, list[Any]]]:
    """Arrange a run's curves for TensorBoard's Custom Scalars: the world's, then those of every federation.

    Returns:
        Charts by their titles, by section; each a kind and the tags it shows.
    """
    sections = {"world at a glance": _charts(list(topology.nodes.values())[:MAX_FEDERATIONS])}
    federations = [node for node in topology.nodes.values() if node.children]
    for node in federations[:MAX_FEDERATIONS]:
        sections[" > ".join(one.name for one in topology.path(node.name))] = _charts([node, *node.children], node)
    return sections


def _charts(nodes: list[Node], federation: Node | None = None) -> dict[str, list[Any]]:
    data = [node.name for node in nodes if node.holds_data]
    private = [node.name for node in nodes if node.settings.privacy is not None]
    charts = {
        "perplexity after_merge": [f"{node.name}/perplexity_after_merge" for node in nodes],
        "perplexity after_fit": [f"{name}/perplexity_after_fit" for name in data],
        "loss by local step": [f"{name}/loss" for name in data],
        "epsilon, and max_epsilon": [f"{name}/{tag}" for name in private for tag in ("epsilon", "max_epsilon")],
    }
    if federation is not None:
        children = [child.name for child in federation.children]
        own = [federation.name] if federation.holds_data else []
        charts["attention"] = [f"{federation.name}/attention/{name}" for name in [*own, *children]]
        charts["bytes since the run began"] = [f"{name}/bytes_{way}" for name in children for way in ("down", "up")]
    return {title: ["Multiline", [f"^{tag}$" for tag in tags]] for title, tags in charts.items() if tags}
