"""Pictures of a run in TensorBoard, and the layout of its charts."""

from __future__ import annotations

from typing import Any

import numpy as np
from lightning.pytorch import LightningModule

from worldlm.monitoring.record import Record
from worldlm.runs.results import MOMENTS, RunRecord
from worldlm.topology import Node, Topology
from worldlm.trainer import FederationCallback, WorldTrainer

MAX_FEDERATIONS = 24
"""Largest number of federations with charts of their own."""

STEPS_BETWEEN = 100
"""Default minimum of local steps between two pictures or samples, each of which takes as long as a few steps."""

_INCHES = 6.0  # TensorBoard shows pictures small


class Pictures(FederationCallback):
    """Draws pictures of the run in TensorBoard; does nothing if the run has no TensorBoard logger.

    Images shows every node's perplexity by round, and the world with each node's perplexity, the bytes on each edge,
    and the routes of the residuals since the last picture. It also shows the attention weights of the round,
    and the privacy spent. Custom Scalars shows the charts of the world, then those of each federation with its
    participants. Its charts have one colour for each run, so those of the world show means, which compare runs.

    Args:
        every_n_rounds: Rounds between two pictures, at least 1. None uses `rounds_between`: five pictures per run, or
            fewer in a short one. The last round is always drawn.

    Raises:
        ValueError: If `every_n_rounds` is below 1, or the recipe has no `Record`.
    """

    def __init__(self, every_n_rounds: int | None = None) -> None:
        if every_n_rounds is not None and every_n_rounds < 1:
            raise ValueError(f"every_n_rounds must be at least 1, got {every_n_rounds}")
        self.every_n_rounds = every_n_rounds
        self._drawn = -1

    def setup(self, trainer: WorldTrainer, pl_module: LightningModule, stage: str) -> None:  # type: ignore[override]
        if trainer.find_callback(Record) is None:
            raise ValueError("Pictures needs Record among trainer.callbacks, whose data it draws")

    def on_train_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        for writer in trainer.run_log.tensorboard_writers():
            writer.add_custom_scalars(layout(trainer.topology))

    def on_train_epoch_end(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        if is_due(trainer, self.every_n_rounds):
            self._draw(trainer)

    def _draw(self, trainer: WorldTrainer) -> None:
        if not (writers := trainer.run_log.tensorboard_writers()):
            return
        recorder = trainer.find_callback(Record)
        assert recorder is not None, "setup has checked this"
        record = recorder.so_far(trainer)
        for name, figure in draw(record, since=self._drawn + 1).items():
            picture = _pixels(figure)
            for writer in writers:
                writer.add_image(f"pictures/{name}", picture, trainer.world.round + 1, dataformats="HWC")
        self._drawn = trainer.world.round

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self._drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._drawn = int(state_dict["drawn"])


def rounds_between(trainer: WorldTrainer) -> int:
    """Return the default number of rounds between two pictures or samples.

    It is a fifth of the run, or ten rounds if the run has no last round. It is larger if the node that trains most
    needs more rounds for `STEPS_BETWEEN` local steps.
    """
    last, steps = trainer.max_epochs, max(trainer.steps_per_round().values())
    fifth = 10 if last is None or last < 1 else -(-last // 5)
    return max(fifth, -(-STEPS_BETWEEN // max(steps, 1)))


def is_due(trainer: WorldTrainer, every_n_rounds: int | None) -> bool:
    """Return whether pictures or samples are due: every n rounds (None: see `rounds_between`) and in the last round."""
    finished = trainer.world.round + 1
    return finished == trainer.max_epochs or finished % (every_n_rounds or rounds_between(trainer)) == 0


def draw(record: RunRecord, since: int = 0) -> dict[str, Any]:
    """Draw a run at the end of a round.

    Args:
        record: The run so far.
        since: The first round whose routes are shown, from 0.

    Returns:
        Matplotlib figures by name. Figures for which the run has no data are omitted.
    """
    from worldlm.plots.boxes import of_names, of_perplexity, of_traffic  # imported late: it takes a second
    from worldlm.plots.budget import budget
    from worldlm.plots.curves import curves
    from worldlm.plots.heatmaps import attention
    from worldlm.plots.world import draw_world

    last = record.rounds[-1]
    number = last["round"] + 1
    figures = {"perplexity": draw_world(of_perplexity(record), f"held-out perplexity after round {number}")}
    if any(record.series(node["name"], moment) for node in record.nodes for moment in MOMENTS):
        figures["curves"] = curves(record, _INCHES)
    if any("bytes_up" in figures for figures in last["nodes"].values()):
        figures["bytes"] = draw_world(of_traffic(record), f"bytes on every edge, {_rounds(0, number)}")
    if any(entry["routes"] for entry in record.rounds):
        routes = record.routes_from(since)
        figures["residuals"] = draw_world(of_names(record), f"residuals, {_rounds(since, number)}", routes)
    if record.mixtures:
        figures["attention"] = attention([record], _INCHES)
    if any(kind in figures for figures in last["nodes"].values() for kind in ("epsilon", "example_epsilon")):
        figures["privacy"] = budget(record, _INCHES)
    return figures


def _rounds(since: int, number: int) -> str:
    return f"rounds {since + 1} to {number}" if since + 1 < number else f"round {number}"


def _pixels(figure: Any) -> np.ndarray[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(100)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]


def layout(topology: Topology) -> dict[str, dict[str, list[Any]]]:
    """Lay out a run's charts for TensorBoard's Custom Scalars: first the world, then every federation.

    Returns:
        Sections by title; each maps the titles of its charts to a chart type and the tags shown.
    """
    means = {f"mean perplexity {moment}": f"^world/mean_perplexity_{moment}$" for moment in MOMENTS}
    at_a_glance = {title: ["Multiline", [tag]] for title, tag in means.items()}
    if topology.root.children:
        at_a_glance["bytes since the run began"] = ["Multiline", ["^world/bytes$"]]
    sections = {"world at a glance": at_a_glance}
    federations = [node for node in topology.nodes.values() if node.children] or [topology.root]
    for node in federations[:MAX_FEDERATIONS]:
        title = " > ".join(step.name for step in topology.path(node.name))
        sections[title] = _charts(node)
    return sections


def _charts(federation: Node) -> dict[str, list[Any]]:
    nodes = [federation, *federation.children]
    data = [node.name for node in nodes if node.holds_data]
    private = [node.name for node in nodes if node.settings.privacy is not None]
    charts = {
        "perplexity after_merge": [f"{node.name}/perplexity_after_merge" for node in nodes if federation.children],
        "perplexity after_fit": [f"{name}/perplexity_after_fit" for name in data],
        "loss by local step": [f"{name}/loss" for name in data],
        "epsilon, and max_epsilon": [f"{name}/{tag}" for name in private for tag in ("epsilon", "max_epsilon")],
    }
    children = [child.name for child in federation.children]
    charts["bytes since the run began"] = [f"{name}/bytes_{way}" for name in children for way in ("down", "up")]
    return {title: ["Multiline", [f"^{tag}$" for tag in tags]] for title, tags in charts.items() if tags}
