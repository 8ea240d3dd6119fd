"""What is logged of a local step: the loss of all its batches, and the learning rate that it used."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor

from worldlm.callbacks import Averaging, NodeMetrics
from worldlm.federation.parameters import PARTS
from worldlm.models.module import warmup_cosine
from worldlm.topology import Topology

Make = Callable[..., Any]


def test_a_step_logs_the_mean_loss_of_its_batches(
    star: Make, fit: Make, make_module: Make, recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit of three batches has two steps: the second has one batch."""
    module, losses = make_module(warmup_steps=3), dict[str, list[float]]()
    training_step = module.training_step

    def recorded(batch: Any, batch_idx: int) -> Any:
        loss = training_step(batch, batch_idx)
        losses.setdefault(module.trainer.active_node, []).append(float(loss.detach()))
        return loss

    monkeypatch.setattr(module, "training_step", recorded)
    options = {"accumulate_grad_batches": 2, "limit_train_batches": 3, "logger": recorder, "log_every_n_steps": 1}
    fit(star("ab"), [Averaging(parts=PARTS), NodeMetrics()], module=module, **options)
    for name in "ab":
        first, second, third, *later = losses[name]
        expected = [(first + second) / 2, third, (later[0] + later[1]) / 2, later[2]]
        logged = [(step, value) for tag, value, step in recorder.scalars if tag == f"{name}/loss"]
        assert logged == [(step, pytest.approx(loss)) for step, loss in enumerate(expected, 1)]


def test_a_step_logs_the_learning_rate_that_it_used(
    single: Topology, fit: Make, make_module: Make, recorder: Any
) -> None:
    """Lightning's monitor counts steps from 0, and WorldLM from 1."""
    monitor, rates = LearningRateMonitor(), [1e-2 * warmup_cosine(step, 2, 6, 0.1) for step in range(6)]
    callbacks, options = [NodeMetrics(), monitor], {"logger": recorder, "log_every_n_steps": 1}
    fit(single, callbacks, module=make_module(warmup_steps=2), **options)
    logged = {
        tag: [(step, value) for name, value, step in recorder.scalars if name == tag]
        for tag in ("alone/lr", "lr-AdamW")
    }
    assert logged["alone/lr"] == [(step, pytest.approx(rate)) for step, rate in enumerate(rates, 1)]
    assert logged["lr-AdamW"] == [(step, pytest.approx(rate)) for step, rate in enumerate(rates)]


def test_a_batch_without_examples_has_no_loss() -> None:
    logged: list[dict[str, float]] = []
    trainer: Any = SimpleNamespace(
        accumulate_grad_batches=1,
        active_node="a",
        log_every_n_steps=1,
        fit_loop=SimpleNamespace(loaders={"a": SimpleNamespace(dataset=None)}),
        run_log=SimpleNamespace(scalars=lambda scalars, step: logged.append(scalars)),
        strategy=None,
        world=SimpleNamespace(states={"a": SimpleNamespace(num_steps=0)}),
    )
    metrics, optimizer = NodeMetrics(), torch.optim.SGD([torch.zeros(1)], lr=0.5)
    for i, (number, loss) in enumerate([(0, 0.0), (2, 3.0)]):
        metrics.on_before_optimizer_step(trainer, None, optimizer)  # type: ignore[arg-type]
        metrics.on_train_batch_end(trainer, None, {"loss": torch.tensor(loss)}, torch.zeros(number, 9), i)  # type: ignore[arg-type]
    assert [(scalars["a/lr"], scalars.get("a/loss")) for scalars in logged] == [(0.5, None), (0.5, 3.0)]
