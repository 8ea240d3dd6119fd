"""A run with the callbacks of other methods that is interrupted and resumed ends like one that was not interrupted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lightning.pytorch import Callback

from worldlm.callbacks import (
    AttentionAggregation,
    Averaging,
    ClusteredAveraging,
    Ditto,
    FedAMP,
    LastCheckpoint,
    NodeMetrics,
    Proximal,
    ResidualExchange,
    TokenRows,
    Traffic,
    UpdatePrivacy,
)
from worldlm.topology import Topology, parse_topology

Make = Callable[..., Any]
HOOKS = ("on_train_batch_start", "on_train_batch_end", "on_train_epoch_end")


def soft_rows() -> list[Callback]:
    outer: dict[str, Any] = {"arguments": {"lr": 0.7, "momentum": 0.9, "nesterov": True}}
    averaging = Averaging(**outer, download_rate=0.5, leaf_download_rate=(1.0, 0.25))
    attention = AttentionAggregation(temperature=(0.5, 0.1), download_rate=(0.75, 0.5), leaf_download_rate=0.5)
    return [TokenRows(), Proximal(0.3), averaging, attention, UpdatePrivacy(), NodeMetrics()]


def amp() -> list[Callback]:
    return [FedAMP(self_weight=0.3, sigma=0.5), Proximal(0.3), NodeMetrics()]


def clustered() -> list[Callback]:
    averaging = ClusteredAveraging(min_similarity=0.1, after_round=2, leaf_download_rate=(1.0, 0.5))
    return [TokenRows(), averaging, NodeMetrics()]


def ditto() -> list[Callback]:
    momentum = {"lr": 0.7, "momentum": 0.9}
    return [TokenRows(), UpdatePrivacy(), Ditto(0.5, arguments=momentum), NodeMetrics()]


@pytest.mark.parametrize(
    "saver_first",
    [pytest.param(True, id="saved before", marks=pytest.mark.slow), pytest.param(False, id="saved after")],
)
@pytest.mark.parametrize(
    ("accumulate", "every"), [(1, 4), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((1, 1), (2, 7)))]
)
def test_resume_from_steps(
    accumulate: int,
    every: int,
    saver_first: bool,
    busy_tree: Topology,
    fit: Make,
    make_module: Make,
    save_everywhere: Make,
    snapshot: Make,
    differences: Make,
) -> None:
    options: dict[str, Any] = {"limit_val_batches": 0, "accumulate_grad_batches": accumulate}
    saver = save_everywhere(*HOOKS)
    callbacks = [saver, *soft_rows()] if saver_first else [*soft_rows(), saver]
    whole = snapshot(fit(busy_tree, callbacks, **options))
    assert len(saver.saved) == 2 * (2 * accumulate * (2 * 3 + 2) + 1)
    for path in saver.saved[::every]:
        resumed = fit(busy_tree, soft_rows(), resume=path, module=make_module(99), **options)
        assert differences(snapshot(resumed), whole) == [], path.name


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_resume_within_a_longer_fit_with_copied_weights(
    every: int, tree: Topology, fit: Make, make_module: Make, save_everywhere: Make, snapshot: Make, differences: Make
) -> None:
    saver = save_everywhere("on_train_batch_start", "on_train_batch_end")
    options: dict[str, Any] = {"limit_val_batches": 0, "accumulate_grad_batches": 2}
    options |= {"share_memory": False, "limit_train_batches": 3}  # the last optimizer step has a single batch
    whole = snapshot(fit(tree, [*soft_rows(), saver], **options))
    for path in saver.saved[::every]:
        resumed = fit(tree, soft_rows(), resume=path, module=make_module(99), **options)
        assert differences(snapshot(resumed), whole) == [], path.name


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", [amp, clustered])
def test_resume_of_a_method_for_stars(
    method: Make, every: int, star: Make, fit: Make, make_module: Make, save_everywhere: Make, snapshot: Make,
    differences: Make,
) -> None:  # fmt: skip
    saver = save_everywhere(*HOOKS)
    topology, options = star("abc", "participation: 0.67"), {"limit_val_batches": 0, "max_epochs": 3}
    whole = snapshot(fit(topology, [*method(), saver], **options))
    for path in saver.saved[::every]:
        resumed = fit(topology, method(), resume=path, module=make_module(99), **options)
        assert differences(snapshot(resumed), whole) == [], path.name


TWO_MODELS = """
name: two_models
settings: {num_local_steps: 2, batch_size: 2}
root:
  name: world
  children:
    - {name: north, corpus: e, children: [{name: a, corpus: a}, {name: b, corpus: b}]}
    - {name: c, corpus: c, settings: {privacy: {clip_norm: 0.5, noise_multiplier: 0.3}}}
"""


@pytest.mark.parametrize(
    ("saver_first", "share_memory"), [pytest.param(True, False, marks=pytest.mark.slow), (False, True)]
)
def test_resume_of_ditto(
    saver_first: bool, share_memory: bool, fit: Make, make_module: Make, save_everywhere: Make, snapshot: Make,
    differences: Make,
) -> None:  # fmt: skip
    """Within the steps of either model, and before and after the leaf changes from one to the other."""
    topology = parse_topology(TWO_MODELS, "two_models.yaml")
    options = {"limit_val_batches": 0, "accumulate_grad_batches": 2, "share_memory": share_memory}
    saver = save_everywhere(*HOOKS)
    callbacks = [saver, *ditto()] if saver_first else [*ditto(), saver]
    whole = snapshot(fit(topology, callbacks, **options))
    for path in saver.saved[::5]:  # all positions within a fit, which saves eight
        resumed = fit(topology, ditto(), resume=path, module=make_module(99), **options)
        assert differences(snapshot(resumed), whole) == [], path.name


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_resume_with_misses_jitter_and_poisson_draws(
    every: int, fit: Make, make_module: Make, save_everywhere: Make, snapshot: Make, differences: Make
) -> None:
    text = """
name: missing
settings: {num_local_steps: 1, batch_size: 2, dropout: 0.4, deadline_seconds: 0.2}
root:
  name: world
  children:
    - name: north
      settings: {participation: 0.7, sampling: poisson, link: {bandwidth_mbps: 3, jitter: 0.6}}
      children: [{name: a, corpus: a}, {name: b, corpus: b}]
    - name: south
      settings: {privacy: {clip_norm: 0.5, noise_multiplier: 0.3}, participation: 0.7}
      children: [{name: c, corpus: c}, {name: d, corpus: d}]
"""
    topology, options = parse_topology(text, "missing.yaml"), {"limit_val_batches": 0, "max_epochs": 4}

    def pieces() -> list[Callback]:
        attention = AttentionAggregation()
        return [TokenRows(), Averaging(), attention, ResidualExchange(num_residuals=1), UpdatePrivacy(), Traffic()]

    saver = save_everywhere(*HOOKS)
    whole = snapshot(fit(topology, [*pieces(), saver], **options))
    assert sum(state["num_missed"] for state in whole["world"]["states"].values()) > 2
    for path in saver.saved[::every]:
        resumed = fit(topology, pieces(), resume=path, module=make_module(99), **options)
        assert differences(snapshot(resumed), whole) == [], path.name


@pytest.mark.parametrize("batches", [(2, 8), pytest.param((1, 5, 6, 12), marks=pytest.mark.slow)], ids=str)
def test_a_stopped_run_counts_every_token_once(
    batches: tuple[int, ...], tree: Topology, fit: Make, make_module: Make, snapshot: Make, differences: Make
) -> None:
    class Terminate(Callback):
        def __init__(self, batch: int) -> None:
            self.left = batch

        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            self.left -= 1
            if not self.left:
                trainer._signal_connector.received_sigterm = True

    options = {"limit_val_batches": 0}
    whole = snapshot(fit(tree, soft_rows(), **options))
    for batch in batches:
        trainer = fit(tree, [*soft_rows(), Terminate(batch), LastCheckpoint()], **options)
        path = LastCheckpoint.path(trainer)
        resumed = fit(tree, soft_rows(), resume=path, module=make_module(99), **options)
        assert differences(snapshot(resumed), whole) == [], f"SIGTERM during batch {batch}"


@pytest.mark.parametrize(
    ("now", "change"),
    [
        (("SGD", {"lr": 0.1, "momentum": 0.5}), None),
        (("SGD", {"lr": 1.0, "momentum": 0.9}), "SGD(momentum=0.5) to SGD(momentum=0.9)"),
        (("Adam", {"lr": 0.1}), "SGD(momentum=0.5) to Adam()"),
        (("Adam", {"lr": 0.1, "amsgrad": True}), "SGD(momentum=0.5) to Adam(amsgrad=True)"),
    ],
)
def test_another_outer_optimizer_begins_anew(
    now: tuple[str, dict[str, Any]],
    change: str | None,
    star: Make,
    fit: Make,
    save_everywhere: Make,
    snapshot: Make,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def method(optimizer: str, arguments: dict[str, Any]) -> list[Callback]:
        return [Averaging(optimizer=optimizer, arguments=arguments), AttentionAggregation()]

    saver = save_everywhere("on_train_epoch_end")
    fit(star(), [*method("SGD", {"lr": 1.0, "momentum": 0.5}), saver])
    resumed = snapshot(fit(star(), method(*now), resume=saver.saved[0]))
    state = resumed["world"]["states"]["world"]["memory"][Averaging().state_key]["optimizer"][0]
    of_adam = {"step", "exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if "amsgrad" in now[1] else [])}
    assert set(state) == ({"momentum_buffer"} if now[0] == "SGD" else of_adam)
    warnings = [record.getMessage() for record in caplog.records if "saved state" in record.getMessage()]
    assert warnings == (
        [f"outer optimizer of world changed from {change}: its saved state is not used"] if change else []
    )


def test_an_outer_optimizer_that_keeps_more_begins_anew(star: Make, fit: Make, save_everywhere: Make) -> None:
    def method(**arguments: Any) -> list[Callback]:
        return [Averaging(optimizer="Adam", arguments={"lr": 0.1, **arguments}), AttentionAggregation()]

    saver = save_everywhere("on_train_epoch_end")
    fit(star(), [*method(), saver])
    fit(star(), method(amsgrad=True), resume=saver.saved[0])
