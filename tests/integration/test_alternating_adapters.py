"""Rounds that train only one factor of all adapters, so that averaging the factors averages their products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from families import adapted, tiny_module, write_base
from torch import Tensor

from worldlm.callbacks import AlternatingAdapters, Averaging, ExamplePrivacy, NodeMetrics, UpdatePrivacy
from worldlm.callbacks.averaging import participant_weight
from worldlm.data import BlockBatchSampler
from worldlm.federation.messages import joined
from worldlm.federation.parameters import PARTS
from worldlm.federation.private_gradient import private_gradient
from worldlm.models import LanguageModule, Lora
from worldlm.models.module import warmup_cosine
from worldlm.topology import Topology
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with a tiny Llama."""
    write_base(tmp_path / "base", "llama", vocab_size=32)
    return tmp_path / "base"


@pytest.fixture
def make_module(base: Path) -> Make:
    """Return a builder of models with adapters, none of which has dropout."""

    def build(seed: int = 0, dropout: float = 0.0, **options: Any) -> LanguageModule:
        assert not dropout
        return adapted(base, Lora(rank=2, **options), seed=seed)

    return build


class Recorder(FederationCallback):
    """Keeps the factors before and after each fit, and how far each average of products is from their mean."""

    def __init__(self) -> None:
        self.fits: list[tuple[int, str, dict[str, Tensor], dict[str, Tensor]]] = []
        self.errors: list[float] = []
        self._start: dict[str, Tensor] = {}

    def on_local_fit_start(self, context: Any, fit: Any) -> None:
        self._start = {name: value.detach().cpu().clone() for name, value in fit.module.named_parameters()}

    def on_local_fit_end(self, context: Any) -> None:
        after = {name: value.detach().cpu().clone() for name, value in context.state.parameters.items()}
        self.fits.append((context.round, context.node.name, self._start, after))

    def after_aggregate(self, context: Any, uploads: Any) -> None:
        nodes = context.world.topology.nodes
        weights = [participant_weight(nodes[upload.node], upload) for upload in uploads]
        shares = [weight / sum(weights) for weight in weights]
        found = products(context.state.parameters)
        sent = [products(joined(upload.parts)) for upload in uploads]
        for name, product in found.items():
            mean = torch.stack([share * each[name] for share, each in zip(shares, sent, strict=True)]).sum(0)
            self.errors.append(float((product - mean).norm() / mean.norm()))


def products(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: parameters[name.replace("lora_A", "lora_B")].double() @ factor.double()
        for name, factor in parameters.items()
        if "lora_A" in name
    }


def method(*more: Any) -> list[Any]:
    return [AlternatingAdapters(), Averaging(parts=PARTS), *more]


def test_the_average_of_the_trained_factor_is_that_of_the_adapters(
    busy_tree: Topology, tree_without_noise: Topology, star: Make, fit: Make, make_module: Make
) -> None:
    options = {"max_epochs": 4, "limit_val_batches": 0}
    uneven = star("abc", a="settings: {num_local_steps: 3}", b="weight: 0.3")
    for topology in (uneven, tree_without_noise):
        exact, plain = Recorder(), Recorder()
        fit(topology, method(UpdatePrivacy(), exact), module=make_module(), **options)
        fit(topology, [Averaging(parts=PARTS), UpdatePrivacy(), plain], module=make_module(), **options)
        assert len(exact.errors) == len(plain.errors) > 0
        assert max(exact.errors) < 1e-5
        assert max(plain.errors) > 1e-2


def test_a_fit_changes_no_bit_of_the_fixed_factor(busy_tree: Topology, fit: Make, make_module: Make) -> None:
    recorder = Recorder()
    fit(busy_tree, method(UpdatePrivacy(), recorder), module=make_module(), max_epochs=3, limit_val_batches=0)
    assert {name for _, name, *_ in recorder.fits} == {"north", *"abcd"}
    for number, node, before, after in recorder.fits:
        trained = "AB"[(number + 1) % 2]
        for name, value in before.items():
            assert torch.equal(value, after[name]) == (f"lora_{trained}" not in name), (number, node, name)


@pytest.mark.parametrize(("accumulate", "clip"), [(1, None), (1, 0.02), (2, 0.02)])
def test_a_fit_equals_adamw_on_the_trained_factor(
    accumulate: int, clip: float | None, star: Make, fit: Make, make_module: Make, make_data: Make, tolerance: float
) -> None:
    """Weight decay, moments and the norm that is clipped are those of the trained factor only."""
    steps, rounds = 3, 2
    options = {"max_epochs": rounds, "accumulate_grad_batches": accumulate, "gradient_clip_val": clip}
    module, ours = make_module(), make_module()
    for each in (module, ours):
        each.load_base()
        each.optimizer_settings = type(each.optimizer_settings)(lr=1e-2, warmup_steps=1, weight_decay=0.1)
    topology = star("a", a=f"settings: {{num_local_steps: {steps}}}")
    trainer = fit(topology, method(), module=ours, limit_val_batches=0, **options)

    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    blocks = make_data().blocks("a", "train")
    sampler = BlockBatchSampler(len(blocks), 2, 7, "a")
    sampler.length = steps * accumulate * rounds
    batches = [blocks.__getitems__(indices) for indices in sampler]
    for step in range(steps * rounds):
        optimizer.param_groups[0]["lr"] = 1e-2 * warmup_cosine(step, 1, steps * rounds, 0.1)
        chosen = batches[step * accumulate : (step + 1) * accumulate]
        factor = "lora_B." if step < steps else "lora_A."
        trained = {name: value for name, value in module.named_parameters() if factor in name}
        loss = torch.stack([module.loss(batch) for batch in chosen]).mean()
        optimizer.zero_grad()
        for value, gradient in zip(trained.values(), torch.autograd.grad(loss, [*trained.values()]), strict=True):
            value.grad = gradient
        if clip is not None:
            assert torch.nn.utils.clip_grad_norm_(trained.values(), clip) > clip
        optimizer.step()
    for name, value in module.named_parameters():
        found = trainer.world.states["a"].parameters[name]
        torch.testing.assert_close(found, value.detach(), rtol=1e-5, atol=tolerance)


def test_example_privacy_clips_and_noises_the_trained_factor_only(
    star: Make, fit: Make, make_module: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    clipped: list[set[str]] = []

    def noted(samples: Mapping[str, Tensor], **options: Any) -> dict[str, Tensor]:
        clipped.append({name.split(".")[-2] for name in samples})
        assert len(samples) == 3 * 7  # adapters of three blocks
        return private_gradient(samples, **options)

    monkeypatch.setattr("worldlm.callbacks.example_privacy.private_gradient", noted)
    recorder = Recorder()
    topology = star("ab", "example_privacy: {clip_norm: 0.1, noise_multiplier: 1.0}")
    fit(topology, method(ExamplePrivacy(), recorder), module=make_module(), max_epochs=3, limit_val_batches=0)
    steps_of_round = 2 * 2
    assert clipped == [{"lora_B"}] * steps_of_round + [{"lora_A"}] * steps_of_round + [{"lora_B"}] * steps_of_round
    assert max(recorder.errors) < 1e-5
    for number, _, before, after in recorder.fits:
        trained = "AB"[(number + 1) % 2]
        assert all(torch.equal(value, after[name]) == (f"lora_{trained}" not in name) for name, value in before.items())


@pytest.mark.parametrize(
    ("accumulate", "every"), [(1, 3), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((1, 1), (2, 1)))]
)
def test_a_run_resumes_from_every_step(accumulate: int, every: int, tree: Topology, resume_from_all: Make) -> None:
    hooks = ("on_train_batch_end", "on_train_epoch_end")
    options = {"accumulate_grad_batches": accumulate, "limit_val_batches": 0}
    num_saved = resume_from_all(tree, lambda: method(UpdatePrivacy(), NodeMetrics()), hooks, every=every, **options)
    assert num_saved == 2 * (6 * accumulate + 1)


def test_what_is_rejected_in_one_line(star: Make, fit: Make, make_module: Make) -> None:
    alternates = "^AlternatingAdapters trains A and B of adapters in turn, but the model "
    with pytest.raises(ValueError, match=f"{alternates}has no adapters: set model.lora$"):
        fit(star(), method(), module=tiny_module("llama"))
    with pytest.raises(ValueError, match=f"{alternates}trains only B: remove lora.freeze_a, or AlternatingAdapters$"):
        fit(star(), method(), module=make_module(freeze_a=True))
    with pytest.raises(ValueError, match="^AlternatingAdapters is listed after ExamplePrivacy, which would clip"):
        fit(star(), [ExamplePrivacy(), *method()], module=make_module())
