"""A LightningModule and dataloaders that know nothing of WorldLM, in several processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from own_module import Bigrams, as_dicts, loader, shuffled
from torchmetrics import MeanMetric

from worldlm.callbacks import Averaging, NodeMetrics
from worldlm.storage.pages import fetch

Make = Callable[..., Any]


class Measured(Bigrams):
    """Has a metric object, which would wait for all processes by default."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = MeanMetric()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.mean(self.loss(batch))
        self.log("val_mean", self.mean)


def test_the_result_does_not_depend_on_the_processes(
    star: Make, trainer_for: Make, snapshot: Make, differences: Make, on_ranks: Make
) -> None:
    def run() -> dict[str, Any]:
        trainer = trainer_for(star("ab"), [Averaging(), NodeMetrics()])
        trainer.fit(Measured(), shuffled(), loader(4))
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "val" in name}
        return {"all": fetch(snapshot(trainer)), "metrics": metrics}

    alone = run()
    for rank in on_ranks(2, run):
        assert rank["metrics"] == alone["metrics"]
        if rank["all"]["world"]["states"].keys() == alone["all"]["world"]["states"].keys():
            assert differences(rank["all"], alone["all"]) == []


def test_devices_of_a_team_share_batches_of_any_structure(star: Make, trainer_for: Make, on_ranks: Make) -> None:
    def run(devices: int, **options: Any) -> dict[str, Any]:
        trainer = trainer_for(star("ab"), [Averaging()], devices_per_node=devices, devices=devices, limit_val_batches=0)
        trainer.fit(Bigrams(), {"a": loader(1, collate_fn=as_dicts, **options), "b": loader(2, **options)}, loader(4))
        states = trainer.world.states
        return {name: dict(states[name].parameters) for name in "ab"}

    alone = run(1, drop_last=True)
    for rank in on_ranks(2, lambda: run(2, drop_last=True)):
        for name, value in alone["a"].items():
            torch.testing.assert_close(rank["a"][name], value)
    for message in on_ranks(2, lambda: str(_error(lambda: run(2)))):
        assert message.startswith("a: the last batch of a pass is smaller")


def _error(job: Callable[[], Any]) -> ValueError | None:
    try:
        job()
    except ValueError as error:
        return error
    return None
