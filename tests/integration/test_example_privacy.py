"""DP-SGD during a fit: exact without noise, noisy with it, and removed afterwards."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from worldlm.callbacks import Averaging, ExamplePrivacy, LastCheckpoint
from worldlm.data import PoissonBatchSampler
from worldlm.federation.state import NodeState
from worldlm.storage.noise_key_file import read_key
from worldlm.topology import Node
from worldlm.topology.changes import Changes

Make = Callable[..., Any]


def _private(clip_norm: float, noise_multiplier: float = 0.0, more: str = "") -> str:
    return f"example_privacy: {{clip_norm: {clip_norm:.1f}, noise_multiplier: {noise_multiplier}{more}}}"


def _weights(trainer: Any, name: str) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = trainer.world.states[name].parameters
    return weights


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_without_noise_it_is_plain_training_on_the_same_batches(
    precision: str, star: Make, fit: Make, make_data: Any, make_module: Make, noise_key: Path
) -> None:
    class Poisson(make_data):  # type: ignore[misc]
        def train_loader(self, node: Node) -> DataLoader[torch.Tensor]:
            loader: DataLoader[torch.Tensor] = super().train_loader(node)
            blocks: Any = loader.dataset
            sampler = PoissonBatchSampler(len(blocks), 2, read_key(noise_key), node.name)
            return DataLoader(blocks, batch_sampler=sampler, collate_fn=lambda batch: batch)

    plain = make_module(lr=1e-3)
    seen: list[int] = []

    def training_step(batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        seen.append(len(batch))
        return plain.loss(batch) * len(batch) / 2  # DP-SGD divides by the expected size of a batch

    plain.training_step = training_step
    options = {"max_epochs": 2, "precision": precision}
    expected = fit(star("a"), [Averaging()], module=plain, data=Poisson(), **options)
    private = make_module(lr=1e-3)
    trained = fit(star("a", _private(1e6)), [Averaging(), ExamplePrivacy()], module=private, **options)
    assert len(set(seen)) > 1  # Poisson-sampled batches vary in size
    tolerance = 1e-5 if precision == "32-true" else 2e-3  # AdamW's first steps amplify rounding
    for name, value in _weights(expected, "a").items():
        torch.testing.assert_close(_weights(trained, "a")[name], value, rtol=1e-3, atol=tolerance)


def test_clipping_bounds_a_step(star: Make, fit: Make) -> None:
    class Gradient(Callback):
        lengths: list[float] = []  # noqa: RUF012

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            grads = [parameter.grad for parameter in pl_module.parameters()]
            self.lengths.append(float(torch.cat([grad.flatten() for grad in grads]).norm()))

    gradient = Gradient()
    fit(star("a", _private(0.1)), [Averaging(), ExamplePrivacy(), gradient], max_epochs=4)
    # a batch has at most 6 blocks (2 are expected), each with a gradient norm of at most 0.1
    assert len(gradient.lengths) == 8
    assert max(gradient.lengths) <= 0.1 * 6 / 2
    assert max(gradient.lengths) > 0.05


def test_noise_reaches_the_weights_and_the_ledger_counts_steps(star: Make, fit: Make) -> None:
    quiet = fit(star("ab", _private(0.1)), [Averaging(), ExamplePrivacy()])
    privacy = ExamplePrivacy()
    noisy = fit(star("ab", _private(0.1, 2.0)), [Averaging(), privacy])
    again = fit(star("ab", _private(0.1, 2.0)), [Averaging(), ExamplePrivacy()])
    for name, value in _weights(noisy, "a").items():
        assert not torch.allclose(value, _weights(quiet, "a")[name], atol=1e-4)
        assert torch.equal(value, _weights(again, "a")[name])
    for name in "ab":
        ledger = privacy.ledger(noisy.world.states[name])
        assert ledger.history == [(2.0, 2 / 13, noisy.world.states[name].num_steps)]
        assert noisy.world.states[name].num_steps == 4
        assert 0 < ledger.epsilon(1e-5) < 20


def _no_traces(module: torch.nn.Module) -> bool:
    hooks = [hook for part in module.modules() for hook in (part._forward_hooks, part._backward_hooks)]
    marks = [hasattr(parameter, "grad_sample") for parameter in module.parameters()]
    return not any(hooks) and not any(marks)


def test_the_next_node_is_not_affected(star: Make, fit: Make, make_module: Make) -> None:
    module = make_module()
    mixed = star("ab", a=f"settings: {{{_private(0.1, 1.0)}}}")
    private = fit(mixed, [Averaging(), ExamplePrivacy()], module=module, max_epochs=1)
    plain = fit(star("ab"), [Averaging()], max_epochs=1)
    for name, value in _weights(plain, "b").items():
        assert torch.equal(_weights(private, "b")[name], value)
        assert not torch.equal(_weights(private, "a")[name], _weights(plain, "a")[name])
    assert _no_traces(module)


def test_resume_from_every_step_and_after_sigterm(
    star: Make, fit: Make, make_module: Make, save_everywhere: Make, snapshot: Make, differences: Make
) -> None:
    class Terminate(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            trainer._signal_connector.received_sigterm = trainer.active_node == "a"

    topology = star("ab", a=f"settings: {{{_private(0.1, 1.0)}}}")
    saver = save_everywhere("on_train_batch_start", "on_train_batch_end")
    whole = snapshot(fit(topology, [Averaging(), ExamplePrivacy(), saver]))
    module = make_module()
    ended = fit(topology, [Averaging(), ExamplePrivacy(), Terminate(), LastCheckpoint()], module=module)
    assert ended.interrupted
    assert _no_traces(module)
    for path in [*saver.saved[::3], LastCheckpoint.path(ended)]:
        resumed = fit(topology, [Averaging(), ExamplePrivacy()], resume=path, module=make_module(9))
        assert differences(snapshot(resumed), whole) == [], path.name


def test_a_node_without_budget_no_longer_takes_part(star: Make, fit: Make, caplog: pytest.LogCaptureFixture) -> None:
    alone = ExamplePrivacy()
    world = fit(star("ab", _private(0.1, 2.0)), [Averaging(), alone], max_epochs=2).world
    spent = alone.ledger(world.states["a"]).epsilon(1e-5)
    limited = star("ab", a=f"settings: {{{_private(0.1, 2.0, f', max_epsilon: {spent + 0.01:.4f}')}}}")
    with caplog.at_level(logging.WARNING, "worldlm"):
        trainer = fit(limited, [Averaging(), ExamplePrivacy()], max_epochs=4)
    assert {name: trainer.world.states[name].num_visits for name in "ab"} == {"a": 2, "b": 4}
    assert "a no longer takes part, from round 3 on" in caplog.text


def test_settings_that_break_the_accounting_are_rejected(star: Make, fit: Make, make_data: Any) -> None:
    topology = star("ab", _private(0.1))
    with pytest.raises(ValueError, match="accumulate_grad_batches is 2, but example_privacy at a, b needs 1"):
        fit(topology, [Averaging(), ExamplePrivacy()], accumulate_grad_batches=2)

    class Shuffled(make_data):  # type: ignore[misc]
        def train_loader(self, node: Node) -> Any:
            return super().train_loader(
                Node(name=node.name, corpus=node.corpus, settings=star("a").nodes["a"].settings)
            )

    with pytest.raises(ValueError, match="example_privacy at a, b needs Poisson-sampled batches"):
        fit(topology, [Averaging(), ExamplePrivacy()], data=Shuffled())


def test_a_run_cannot_resume_with_a_larger_unit(star: Make, fit: Make) -> None:
    """What was released for blocks does not protect documents, so the ledger would promise too much."""
    first = fit(star("ab", _private(0.1, 1.0)), [Averaging(), ExamplePrivacy(), LastCheckpoint()], max_epochs=1)
    larger = star("ab", _private(0.1, 1.0, ", unit: document"))
    with pytest.raises(ValueError, match="a has trained with the unit block, .* cannot hold for each document"):
        fit(larger, [Averaging(), ExamplePrivacy()], resume=LastCheckpoint.path(first))


def test_a_node_that_rejoins_keeps_the_unit_of_its_ledger(star: Make) -> None:
    with_a, without_a = star("ab", _private(0.1, 1.0, ", unit: document")), star("b", _private(0.1, 1.0))
    key, memory = ExamplePrivacy().state_key, {"history": [[1.0, 0.1, 3]], "unit": "document"}
    states = {name: NodeState(parameters={}) for name in with_a.nodes}
    states["a"].memory[key] = dict(memory)
    before, after = ExamplePrivacy(), ExamplePrivacy()
    before.on_topology_change(SimpleNamespace(topology=without_a), Changes(left={"a": "world"}), states)
    after.load_state_dict(before.state_dict())
    states["a"] = NodeState(parameters={})
    after.on_topology_change(SimpleNamespace(topology=with_a), Changes(joined={"a": "world"}), states)
    assert states["a"].memory[key] == memory


def test_a_sampler_of_another_unit_is_rejected(star: Make, fit: Make) -> None:
    with pytest.raises(ValueError, match="protects each document, but its batch_sampler draws blocks"):
        fit(star("a", _private(0.1, 1.0, ", unit: document")), [Averaging(), ExamplePrivacy()])
