"""Trainer options work as in Lightning, or are rejected with a reason."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    ModelSummary,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.plugins.io import TorchCheckpointIO
from tested_family import EMBEDDING

from worldlm.callbacks import (
    Averaging,
    ExamplePrivacy,
    LastCheckpoint,
    NodeMetrics,
    NodeValidation,
    RoundProgress,
    Summary,
    UpdatePrivacy,
)
from worldlm.cli.ending import early_end
from worldlm.federation.parameters import PARTS
from worldlm.models import LanguageModule
from worldlm.topology import Topology
from worldlm.trainer import FederationCallback, WorldTrainer
from worldlm.trainer.options import default_precision

Make = Callable[..., Any]


def fedavg() -> Averaging:
    return Averaging(parts=PARTS)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_steps": 10}, "max_steps is 10: .* use max_epochs"),
        ({"min_steps": 10}, "min_steps is 10: .* use min_epochs"),
        ({"val_check_interval": 0.5}, "val_check_interval is 0.5: .* check_val_every_n_epoch"),
        ({"val_check_interval": 1}, "val_check_interval is 1: "),
        ({"devices": 2, "strategy": "ddp"}, "strategy is 'ddp', but WorldTrainer distributes the nodes"),
        ({"devices": 3, "devices_per_node": 2}, "3 processes cannot be divided into teams of devices_per_node: 2"),
        ({"devices_per_node": 0}, "devices_per_node must be at least 1, got 0"),
        ({"fully_shard": True, "devices": 2}, "fully_shard divides .*: devices_per_node must be at least 2, got 1"),
        (
            {"fully_shard": True, "devices_per_node": 2, "precision": "16-mixed"},
            "precision is 16-mixed, and fully_shard .* use bf16-mixed",
        ),
        (
            {"fully_shard": True, "devices_per_node": 2, "nodes_on": "device"},
            "nodes_on is device, but with fully_shard no device holds a whole node",
        ),
        ({"overfit_batches": 2}, "overfit_batches is 2: .* limit_train_batches"),
        ({"num_sanity_val_steps": 1}, "num_sanity_val_steps is 1: "),
        ({"reload_dataloaders_every_n_epochs": 1}, "reload_dataloaders_every_n_epochs is 1: "),
        ({"barebones": True}, "barebones is True: .* turn off logger, enable_checkpointing"),
        ({"sync_batchnorm": True}, "sync_batchnorm is True: .* use LayerNorm"),
        ({"model_registry": "mine"}, "model_registry is 'mine': .* worldlm export"),
        ({"check_val_every_n_epoch": 0}, "check_val_every_n_epoch is 0: it must be at least 1; limit_val_batches 0"),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches is 0: it must be at least 1"),
        ({"log_every_n_steps": -1}, "log_every_n_steps is -1: it must be at least 0"),
        ({"gradient_clip_val": -1.0}, "gradient_clip_val is -1.0: it must be at least 0; 0 does not clip"),
        ({"limit_train_batches": 0}, "limit_train_batches is 0: no node would train; to evaluate only, use validate"),
        ({"limit_train_batches": 0.0}, "limit_train_batches is 0: no node would train"),
        ({"plugins": TorchCheckpointIO()}, "plugins has TorchCheckpointIO, but WorldLM writes its checkpoints itself"),
        ({"plugins": "async_checkpoint"}, "plugins has async_checkpoint, but"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_options_without_meaning_are_rejected(
    options: dict[str, Any], reason: str, star: Make, trainer_for: Make
) -> None:
    with pytest.raises(ValueError, match=reason):
        trainer_for(star("ab"), [fedavg()], **options)


@pytest.mark.parametrize(
    ("callback", "reason"),
    [
        (StochasticWeightAveraging(0.1), "StochasticWeightAveraging averages .*: use an outer optimizer"),
        (EMAWeightAveraging(), "EMAWeightAveraging averages .*: use an outer optimizer"),
        (BackboneFinetuning(), "BackboneFinetuning changes one optimizer, but every node has its own"),
        (GradientAccumulationScheduler({1: 2}), "GradientAccumulationScheduler acts when .*: use accumulate_grad"),
        (ModelPruning("l1_unstructured"), "ModelPruning renames the parameters .*: prune an exported model"),
        (OnExceptionCheckpoint("saved"), "OnExceptionCheckpoint cannot save while nodes exchange .*LastCheckpoint"),
        (LearningRateFinder(), "LearningRateFinder trains before the first round"),
        (BatchSizeFinder(), "BatchSizeFinder trains before the first round: set data.batch_size"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Callback) else None,
)
def test_callbacks_for_a_single_model_are_rejected(
    callback: Callback, reason: str, star: Make, trainer_for: Make
) -> None:
    with pytest.raises(ValueError, match=reason):
        trainer_for(star("ab"), [fedavg(), callback])


@pytest.mark.parametrize(
    "options",
    [
        {
            "detect_anomaly": True,
            "deterministic": "warn",
            "benchmark": False,
            "gradient_clip_val": 0.5,
            "gradient_clip_algorithm": "value",
            "limit_val_batches": 1,
            "limit_test_batches": 1,
            "limit_predict_batches": 1,
            "precision": None,
            "plugins": [MixedPrecision("bf16-mixed", "cpu")],
        },
        {"precision": "64-true", "inference_mode": False, "use_distributed_sampler": True, "profiler": "simple"},
        {"callbacks_of_lightning": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_and_callbacks_of_lightning_work(
    options: dict[str, Any],
    star: Make,
    fit: Make,
    monkeypatch: pytest.MonkeyPatch,
    recorder: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *_, **__: None)  # it would last
    callbacks: list[Callback] = []
    if options.pop("callbacks_of_lightning", False):
        options |= {"logger": recorder, "enable_progress_bar": True}
        callbacks = [
            RoundProgress(),
            LambdaCallback(on_train_epoch_end=lambda *_: None),
            LearningRateMonitor(),
            ModelSummary(),
            Timer("00:01:00:00"),
        ]
    trainer = fit(star("ab"), [fedavg(), NodeMetrics(), *callbacks], **options)
    assert {trainer.world.states[name].num_steps for name in "ab"} == {4}
    assert float(trainer.callback_metrics["perplexity_after_fit"]) < 31
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("round ")]
    assert len(lines) == (2 if callbacks else 0)
    assert not any("lr-" in line for line in lines)


def test_defaults_of_lightning_are_not_rejected(star: Make, trainer_for: Make) -> None:
    options = {"max_steps": -1, "min_steps": None, "val_check_interval": 1.0, "overfit_batches": 0.0, "devices": 1}
    assert trainer_for(star("ab"), [fedavg()], **options).max_epochs == 2


def test_max_epochs_counts_rounds(star: Make, fit: Make) -> None:
    trainer = fit(star("ab"), [fedavg()], max_epochs=3)
    assert trainer.current_epoch == 3
    assert trainer.global_step == 3 * 2 * 2
    assert {trainer.world.states[name].num_visits for name in "ab"} == {3}


def test_max_time_stops_at_the_end_of_a_round(star: Make, fit: Make) -> None:
    class Slow(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            time.sleep(0.1)

    trainer = fit(star("abc"), [fedavg(), Slow()], max_time=timedelta(seconds=0.15), limit_val_batches=0)
    assert trainer.should_stop
    assert early_end(trainer)[0] == "max_time of 0:00:00 is over"
    assert trainer.current_epoch == 1
    assert {trainer.world.states[name].num_visits for name in "abc"} == {1}
    assert trainer.estimated_stepping_batches == math.inf


class Scripted(NodeMetrics):
    """Uses given perplexities for the rounds instead of evaluating."""

    def __init__(self, *script: float) -> None:
        super().__init__()
        self.script = script

    def _score(self, context: Any, moment: str, *_: Any) -> None:
        self.memory(context.state)[moment] = [self.script[context.round], math.nan]


def test_the_closing_lines_name_the_nodes_that_are_far_worse(
    star: Make, fit: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    callbacks = [fedavg(), Scripted(5, 11e300), Summary(), RoundProgress()]
    fit(star("ab", b="settings: {num_local_steps: 0}"), callbacks, enable_progress_bar=True)
    output = capsys.readouterr()
    assert (
        "far worse than at the start (perplexity above 2 times that before, or not finite): world, a, b" in output.out
    )
    assert len(max(output.out.splitlines(), key=len)) < 200
    assert "round 1/2: mean perplexity after fit 5.00 (1 of 2 nodes), perplexity after merge 5.00\n" in output.err


def test_early_stopping_monitors_rounds(star: Make, fit: Make) -> None:
    stopping = EarlyStopping(monitor="perplexity_after_fit", patience=2)
    trainer = fit(star("ab"), [fedavg(), Scripted(5, 4, 6, 6, 1, 1), stopping], max_epochs=6)
    assert trainer.current_epoch == 4
    assert float(stopping.best_score) == 4
    reason = "Monitored metric perplexity_after_fit did not improve in the last 2 records. Best score: 4.000"
    assert early_end(trainer) == (f"EarlyStopping: {reason}", "EarlyStopping left out")


def test_early_stopping_counts_evaluations_not_rounds(star: Make, fit: Make) -> None:
    stopping = EarlyStopping(monitor="perplexity_after_fit", patience=2)
    metrics = Scripted(9, 5, 9, 4, 9, 6, 9, 7, 1, 1)
    trainer = fit(star("ab"), [fedavg(), metrics, stopping], max_epochs=10, check_val_every_n_epoch=2)
    assert trainer.current_epoch == 8
    assert float(stopping.best_score) == 4


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (
            EarlyStopping("val_loss"),
            "EarlyStopping monitors 'val_loss', which nothing logs: there are perplexity_after_merge, "
            "perplexity_after_fit, world/perplexity_after_merge, a/perplexity_after_merge and 3 more",
        ),
        (ModelCheckpoint(monitor="a/perplexity_after_fitt"), ".*; did you mean 'a/perplexity_after_fit'\\?"),
    ],
)
def test_an_unknown_metric_is_found_before_the_first_round(
    callback: Callback, message: str, star: Make, fit: Make
) -> None:
    metrics = NodeMetrics()
    with pytest.raises(ValueError, match=message):
        fit(star("ab"), [fedavg(), metrics, callback])
    assert metrics.validated == {}
    with pytest.raises(ValueError, match="which nothing logs: nodes are not evaluated"):
        fit(star("ab"), [fedavg(), NodeMetrics(), callback], limit_val_batches=0)


def test_a_metric_of_other_code_is_left_to_lightning(star: Make, fit: Make) -> None:
    class Own(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.callback_metrics["own"] = torch.tensor(float(trainer.current_epoch))

    trainer = fit(star("ab"), [fedavg(), Own(), EarlyStopping("own", patience=1)], max_epochs=4)
    assert trainer.current_epoch == 2
    with pytest.raises(RuntimeError, match="metric `owm` which is not available"):
        fit(star("ab"), [fedavg(), Own(), EarlyStopping("owm")])


def test_early_stopping_waits_for_a_node_that_misses_rounds(star: Make, fit: Make) -> None:
    topology = star("ab", "participation: 0.5")
    trainer = fit(topology, [fedavg(), NodeMetrics(), EarlyStopping("a/perplexity_after_fit")], max_epochs=3)
    first = {name for name in "ab" if trainer.world.states[name].num_visits < 3}
    assert trainer.current_epoch == 3
    assert first, "the node must miss a round for this test to say something"


@pytest.mark.parametrize(("every", "rounds"), [(1, [1, 3]), (2, [1, 3])])
def test_model_checkpoint_keeps_the_best_rounds(
    every: int, rounds: list[int], star: Make, fit: Make, tmp_path: Path
) -> None:
    saving = ModelCheckpoint(
        tmp_path / "best", "{epoch}-{perplexity_after_merge:.0f}", monitor="perplexity_after_merge", save_top_k=2
    )
    metrics = Scripted(9, 3, 9, 2, 9)
    fit(star("ab"), [fedavg(), metrics, saving], max_epochs=5, check_val_every_n_epoch=every)
    names = sorted(path.name for path in tmp_path.glob("best/*.ckpt"))
    assert names == ["epoch=1-perplexity_after_merge=3.ckpt", "epoch=3-perplexity_after_merge=2.ckpt"]
    assert saving.best_model_path.endswith(names[1])
    assert float(saving.best_model_score) == 2


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")
def test_a_kept_checkpoint_is_the_roots_model_and_resumes(
    star: Make, fit: Make, make_module: Make, tmp_path: Path, snapshot: Make, differences: Make
) -> None:
    saving = ModelCheckpoint(tmp_path, "{epoch}", monitor="perplexity_after_merge", save_top_k=-1)
    whole = fit(star("ab"), [fedavg(), NodeMetrics(), saving])
    saved = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    root = whole.world.states["world"].parameters
    assert all(torch.equal(saved["state_dict"][name], value) for name, value in root.items())
    again = ModelCheckpoint(tmp_path, "{epoch}", monitor="perplexity_after_merge", save_top_k=-1)
    callbacks = [fedavg(), NodeMetrics(), again]
    resumed = fit(star("ab"), callbacks, resume=tmp_path / "epoch=0.ckpt", module=make_module(9))
    assert differences(snapshot(resumed), snapshot(whole)) == []


def test_rounds_without_evaluation(star: Make, fit: Make, recorder: Any) -> None:
    fit(
        star("ab"),
        [fedavg(), NodeMetrics()],
        max_epochs=5,
        check_val_every_n_epoch=2,
        logger=recorder,
        log_every_n_steps=1,
    )
    steps = [step for tag, _, step in recorder.scalars if tag == "a/perplexity_after_fit"]
    assert steps == [2, 4, 5]  # after rounds 2 and 4, and after the last
    means = [step for tag, _, step in recorder.scalars if tag == "world/mean_perplexity_after_fit"]
    assert means == [2, 4, 5]
    assert [step for tag, _, step in recorder.scalars if tag == "a/loss"] == [*range(1, 11)]


def test_the_initial_weights_are_evaluated_once_on_each_text(
    tree: Topology, fit: Make, make_module: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[Any] = []
    evaluate = LanguageModule.evaluate

    def counting(self: LanguageModule, batches: Any) -> Any:
        evaluated.append(batches)
        return evaluate(self, batches)

    monkeypatch.setattr(LanguageModule, "evaluate", counting)
    metrics = NodeMetrics()
    trainer = fit(tree, [fedavg(), metrics, UpdatePrivacy()], check_val_every_n_epoch=2)
    in_the_last_round = 2 * 4 + (2 + 2 + 4)  # leaves twice, federations on the text of all nodes below
    assert len(evaluated) == 4 + in_the_last_round
    start, loaders = make_module(), trainer.fit_loop.val_loaders()
    for name, below in {"a": "a", "north": "ab", "world": "abcd"}.items():
        nats = sum(evaluate(start, loaders[leaf]).nats for leaf in below) / len(below)
        before = metrics.scores(trainer.world.states[name])["before"]
        assert before.perplexity == pytest.approx(math.exp(nats), rel=1e-12)


def test_metrics_are_the_mean_of_the_data_nodes(star: Make, fit: Make) -> None:
    metrics = NodeMetrics()
    trainer = fit(star("ab"), [fedavg(), metrics])
    scores = {name: metrics.scores(state) for name, state in trainer.world.states.items()}
    for moment in ("after_merge", "after_fit"):
        values = [scores[name][moment].perplexity for name in "ab"]
        assert float(trainer.callback_metrics[f"perplexity_{moment}"]) == pytest.approx(sum(values) / 2)
        assert float(trainer.callback_metrics[f"a/perplexity_{moment}"]) == pytest.approx(values[0])
    assert scores["a"]["after_fit"].perplexity < scores["a"]["before"].perplexity
    assert not trainer.fit_loop.epoch_loop._results  # Lightning looks at all of these after every batch of every node
    module, world = trainer.lightning_module, scores["world"]
    loaders = trainer.fit_loop.val_loaders()
    pooled = [module.evaluate(loaders[name]) for name in "ab"]  # the live module is the root's
    assert world["after_merge"].perplexity == pytest.approx(math.exp(sum(evaluation.nats for evaluation in pooled) / 2))
    assert "after_fit" not in world


def test_validate_returns_the_scores_of_every_node(
    star: Make,
    trainer_for: Make,
    make_module: Make,
    make_data: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trainer, module, data = trainer_for(star("ab"), [fedavg(), NodeMetrics()]), make_module(), make_data()
    (untrained,) = trainer.validate(module, datamodule=data)
    assert "bits per byte" in capsys.readouterr().out
    assert set(untrained) == {
        f"{node}/{name}" for node in ("world", "a", "b") for name in ("perplexity", "bits_per_byte")
    }
    trainer.fit(module, datamodule=data)
    last = {name: float(value) for name, value in trainer.callback_metrics.items()}
    (trained,) = trainer.validate(datamodule=data, verbose=False)
    assert trained["world/perplexity"] == pytest.approx(last["world/perplexity_after_merge"])
    assert trained["a/perplexity"] == pytest.approx(last["a/perplexity_after_fit"])
    assert capsys.readouterr().out == ""
    trainer.save_checkpoint(tmp_path / "world.ckpt", weights_only=False)
    other = trainer_for(star("ab"), [fedavg(), NodeValidation()])
    assert other.validate(make_module(9), datamodule=data, ckpt_path=tmp_path / "world.ckpt") == [trained]
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, datamodule=data)  # what was read for the evaluation can be trained
    assert trainer.current_epoch == 3


def test_validate_needs_a_callback_that_evaluates(star: Make, trainer_for: Make, make_module: Make) -> None:
    with pytest.raises(ValueError, match="validate needs a callback that evaluates nodes: add .*NodeMetrics"):
        trainer_for(star("ab"), [fedavg()]).validate(make_module())
    with pytest.raises(ValueError, match="validate runs in one process, but devices and num_nodes set 2"):
        trainer_for(star("ab"), [fedavg(), NodeMetrics()], devices=2).validate(make_module())


def test_fast_dev_run_writes_no_files(star: Make, fit: Make, make_module: Make, tmp_path: Path) -> None:
    everything = [fedavg(), NodeMetrics(), RoundProgress(), Summary(), LastCheckpoint()]
    trainer = fit(
        star("ab"), everything, fast_dev_run=True, enable_progress_bar=True, module=make_module(warmup_steps=0)
    )
    assert trainer.current_epoch == 1
    assert {trainer.world.states[name].num_steps for name in "ab"} == {1}
    assert [*tmp_path.rglob("*.ckpt")] == []


def test_a_second_fit_continues(star: Make, trainer_for: Make, make_module: Make, make_data: Make) -> None:
    trainer, module = trainer_for(star("ab"), [fedavg()]), make_module()
    trainer.fit(module, datamodule=make_data())
    before = trainer.world.states["a"].parameters[EMBEDDING].clone()
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, datamodule=make_data())
    assert trainer.current_epoch == 3
    state = trainer.world.states["a"]
    assert (state.num_visits, state.num_steps, state.num_batches) == (3, 6, 6)
    assert not torch.equal(state.parameters[EMBEDDING], before)
    optimizer = trainer.fit_loop.slot.state_dict()["a"]["optimizer"]
    assert {int(entry["step"]) for entry in optimizer["state"].values()} == {6}


def test_an_interrupted_fit_continues_in_the_same_process(
    star: Make, trainer_for: Make, make_module: Make, make_data: Make, fit: Make, snapshot: Make, differences: Make
) -> None:
    class Stumble(FederationCallback):
        batches = 0

        def on_train_batch_start(self, *args: Any) -> None:
            self.batches += 1
            if self.batches == 4:
                raise KeyError("a full disk, say")

    trainer, module = trainer_for(star("ab"), [fedavg(), Stumble()]), make_module()
    with pytest.raises(KeyError, match="a full disk"):
        trainer.fit(module, datamodule=make_data())
    trainer.fit(module, datamodule=make_data())
    assert differences(snapshot(trainer), snapshot(fit(star("ab"), [fedavg()]))) == []


def test_every_node_needs_a_loader(star: Make, fit: Make, make_data: Any) -> None:
    class Partial(make_data):  # type: ignore[misc]
        def train_dataloader(self) -> Any:
            return {"a": super().train_dataloader()["a"]}

    with pytest.raises(ValueError, match="one loader for each of a, b, got a"):
        fit(star("ab"), [fedavg()], data=Partial())


def test_float16_and_example_privacy_exclude_each_other(star: Make, fit: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WorldTrainer, "scaler", property(lambda _: object()))
    with pytest.raises(ValueError, match="would clip scaled gradients"):
        fit(star("ab", "example_privacy: {clip_norm: 1.0}"), [fedavg(), ExamplePrivacy()])


@pytest.mark.parametrize(
    ("accelerator", "has_gpu", "precision"),
    [("auto", True, "bf16-mixed"), ("auto", False, "32-true"), ("cpu", True, "32-true"), ("gpu", True, "bf16-mixed")],
)
def test_a_gpu_computes_in_bf16(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, has_gpu: bool, precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert default_precision(accelerator) == precision
