"""Uploads of a private node are clipped and noised, its own weights are not, and its budget excludes it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from worldlm.callbacks import (
    AttentionAggregation,
    Averaging,
    DivergenceRecovery,
    ResidualExchange,
    TokenRows,
    UpdatePrivacy,
)
from worldlm.federation.parameters import PARTS, clone, num_bytes
from worldlm.rounds import World
from worldlm.topology import Topology, parse_topology
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]


class AddMetrics(FederationCallback):
    """Adds metrics to every upload."""

    def on_upload(self, context: Any, upload: Any) -> Any:
        return replace(upload, metrics={"loss": 1.0})


def _frozen(message: Any) -> Any:
    """Copy a message, which may share tensors with its sender."""
    return replace(message, parts={part: clone(tensors) for part, tensors in message.parts.items()})


class UploadRecorder(FederationCallback):
    """Listed last: records each upload and download, and the node's own weights."""

    def __init__(self) -> None:
        self.passed: list[tuple[Any, Any, dict[str, torch.Tensor]]] = []

    def on_sanitise(self, context: Any, upload: Any, download: Any) -> Any:
        own = {name: tensor.clone() for name, tensor in context.state.parameters.items()}
        self.passed.append((_frozen(upload), _frozen(download), own))
        return upload

    def of(self, name: str) -> list[tuple[Any, Any, dict[str, torch.Tensor]]]:
        return [entry for entry in self.passed if entry[0].node == name]


def _flat(parts: Mapping[Any, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: tensor for tensors in parts.values() for name, tensor in tensors.items()}


def _length(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> float:
    return sum(float((left[name].double() - right[name].double()).square().sum()) for name in left) ** 0.5


def _history(privacy: UpdatePrivacy, world: World) -> dict[str, list[tuple[float, float, int]]]:
    ledgers = {name: privacy.ledger(state) for name, state in world.states.items()}
    return {name: ledger.history for name, ledger in ledgers.items() if ledger.history}


def _method(recorder: UploadRecorder) -> list[Any]:
    return [Averaging(), AttentionAggregation(), AddMetrics(), UpdatePrivacy(), recorder]


def test_uploads_are_clipped_and_own_weights_are_not(star: Make, fit: Make) -> None:
    recorder = UploadRecorder()
    tighter = "settings: {privacy: {clip_norm: 0.05}}"
    fit(star("ab", "privacy: {clip_norm: 0.2}", b=tighter), _method(recorder))
    assert len(recorder.passed) == 4
    for upload, download, own in recorder.passed:
        clip_norm = {"a": 0.2, "b": 0.05}[upload.node]
        sent, start = _flat(upload.parts), _flat(download.parts)
        assert sent.keys() == own.keys()
        assert _length(own, start) > clip_norm  # otherwise clipping has no effect
        assert 0.99 * clip_norm < _length(sent, start) <= clip_norm * (1 + 1e-5)
        for part in ("keys", "values"):
            assert all(not torch.equal(sent[name], own[name]) for name in upload.parts[part])
        assert upload.metrics == {}


def test_uploads_of_public_nodes_are_not_changed(star: Make, fit: Make) -> None:
    recorder = UploadRecorder()
    fit(star("ab", b="settings: {privacy: {clip_norm: 0.05}}"), _method(recorder))
    for upload, _, own in recorder.of("a"):
        assert all(torch.equal(tensor, own[name]) for name, tensor in _flat(upload.parts).items())
        assert upload.metrics == {"loss": 1.0}


def test_only_uploads_are_noised(star: Make, fit: Make) -> None:
    clipped, noised = UploadRecorder(), UploadRecorder()
    fit(star("ab", "privacy: {clip_norm: 0.2}"), _method(clipped), max_epochs=2)
    trainer = fit(star("ab", "privacy: {clip_norm: 0.2, noise_multiplier: 0.5}"), _method(noised), max_epochs=2)
    noises = []
    for name in "ab":
        (plain, _, own), (sent, _, own_too) = clipped.of(name)[0], noised.of(name)[0]
        assert all(torch.equal(own[key], own_too[key]) for key in own)
        difference = [
            (sent.parts[part][key] - plain.parts[part][key]).flatten() for part in PARTS for key in sent.parts[part]
        ]
        noises.append(torch.cat(difference))
        assert float(noises[-1].std()) == pytest.approx(0.5 * 0.2, rel=0.05)
        assert abs(float(noises[-1].mean())) < 5 * 0.1 / len(noises[-1]) ** 0.5
    assert not torch.allclose(*noises)
    privacy = next(callback for callback in trainer.callbacks if isinstance(callback, UpdatePrivacy))
    assert _history(privacy, trainer.world) == {"a": [(0.5, 1.0, 2)], "b": [(0.5, 1.0, 2)]}  # the root sends no uploads


def test_a_node_without_budget_is_excluded_and_the_run_continues(
    star: Make, fit: Make, caplog: pytest.LogCaptureFixture
) -> None:
    private = "settings: {privacy: {clip_norm: 1.0, noise_multiplier: 1.0, max_epsilon: 5.5}}"
    recorder = UploadRecorder()
    with caplog.at_level(logging.WARNING, "worldlm"):
        trainer = fit(star("ab", a=private), _method(recorder), max_epochs=3)
    assert {name: trainer.world.states[name].num_visits for name in "ab"} == {"a": 1, "b": 3}
    assert len(recorder.of("a")) == 1
    assert trainer.current_epoch == 3
    warnings = [message for message in caplog.messages if "no longer takes part" in message]
    assert len(warnings) == 1
    assert warnings[0].startswith("a no longer takes part, from round 2 on")
    privacy = next(callback for callback in trainer.callbacks if isinstance(callback, UpdatePrivacy))
    assert 0 < privacy.ledger(trainer.world.states["a"]).epsilon(1e-5) <= 5.5


def test_each_sent_residual_is_one_more_release(tree: Topology, fit: Make) -> None:
    privacy = UpdatePrivacy()
    callbacks = [Averaging(), AttentionAggregation(), ResidualExchange(num_residuals=1), privacy]
    history = _history(privacy, fit(tree, callbacks).world)
    # two uploads, each with one child's residual
    assert history == {"south": [(0.3, 1.0, 4)], "c": [(0.3, 1.0, 2)], "d": [(0.3, 1.0, 2)]}


def test_a_residual_above_the_budget_is_not_sent(fit: Make, caplog: pytest.LogCaptureFixture) -> None:
    text = """
name: tight
settings: {num_local_steps: 2, batch_size: 2}
root:
  name: world
  children:
    - {name: a, corpus: a}
    - name: south
      settings: {privacy: {clip_norm: 0.5, noise_multiplier: 1.0, max_epsilon: 5.5}}
      children: [{name: c, corpus: c}, {name: d, corpus: d}]
"""
    privacy, recorder = UpdatePrivacy(), UploadRecorder()
    callbacks = [Averaging(), AttentionAggregation(), ResidualExchange(num_residuals=1), privacy, recorder]
    with caplog.at_level(logging.WARNING, "worldlm"):
        trainer = fit(parse_topology(text, "tight.yaml"), callbacks, max_epochs=1)
    ((upload, _, _),) = recorder.of("south")
    assert upload.residuals == ()
    assert _history(privacy, trainer.world)["south"] == [(1.0, 1.0, 1)]
    assert "is not sent: it would raise the epsilon of south" in caplog.text
    assert trainer.world.states["south"].bytes_up == num_bytes(trainer.world.states["south"].parameters)


def test_a_diverged_private_node_sends_noise_and_the_run_continues(
    star: Make, fit: Make, caplog: pytest.LogCaptureFixture
) -> None:
    class Diverge(FederationCallback):
        def on_local_fit_end(self, context: Any) -> None:
            if (context.round, context.node.name) == (1, "b"):
                next(iter(context.part("backbone").values())).fill_(torch.nan)

    topology = star("ab", "privacy: {clip_norm: 0.2, noise_multiplier: 1.0}")
    trainer = fit(
        topology,
        [Averaging(), privacy := UpdatePrivacy(), Diverge(), DivergenceRecovery()],
        limit_val_batches=0,
        max_epochs=3,
    )
    expected = "round 2: the update of b has NaN or infinite values; only noise is sent"
    assert [message for message in caplog.messages if "NaN" in message] == [expected]
    assert _history(privacy, trainer.world)["b"] == [(1.0, 1.0, 3)]  # its uploads do not reveal the divergence
    assert all(bool(tensor.isfinite().all()) for tensor in trainer.world.states["world"].parameters.values())


def test_privacy_without_a_callback_is_an_error_before_the_first_step(star: Make, trainer_for: Make) -> None:
    topology = star("ab", "privacy: {clip_norm: 0.2}")
    with pytest.raises(ValueError, match=r"asks for privacy at world, a, b.*worldlm\.callbacks\.UpdatePrivacy"):
        trainer_for(topology, [Averaging()])
    topology = star("ab", "example_privacy: {clip_norm: 0.2}")
    with pytest.raises(ValueError, match=r"asks for example_privacy.*worldlm\.callbacks\.ExamplePrivacy"):
        trainer_for(topology, [Averaging(), UpdatePrivacy()])


def test_a_sent_residual_is_clipped_again(fit: Make) -> None:
    text = """
name: clipped
settings: {num_local_steps: 3, batch_size: 2}
root:
  name: world
  children:
    - {name: a, corpus: a}
    - name: south
      settings: {privacy: {clip_norm: 0.05}}
      children: [{name: c, corpus: c}, {name: d, corpus: d}]
"""
    recorder = UploadRecorder()
    callbacks = [Averaging(), AttentionAggregation(), ResidualExchange(num_residuals=1), UpdatePrivacy(), recorder]
    fit(parse_topology(text, "clipped.yaml"), callbacks)
    lengths = [
        _length({**residual.keys, **residual.values}, _flat(download.parts))
        for upload, download, _ in recorder.of("south")
        for residual in upload.residuals
    ]
    assert len(lengths) == 2
    assert all(0 < length <= 0.05 * (1 + 1e-5) for length in lengths)


def test_a_private_federation_does_not_say_which_tokens_were_read(fit: Make) -> None:
    """Its residuals come from nodes that are private themselves, and have no counts to send."""
    text = """
name: rows
settings: {num_local_steps: 1, batch_size: 2}
root:
  name: world
  children:
    - {name: a, children: [{name: b, corpus: b}, {name: d, corpus: d}]}
    - name: south
      settings: {privacy: {clip_norm: 0.05}}
      children: [{name: c, corpus: c}, {name: e, corpus: e}]
"""
    recorder = UploadRecorder()
    callbacks = [Averaging(), AttentionAggregation(), ResidualExchange(), TokenRows(), UpdatePrivacy(), recorder]
    fit(parse_topology(text, "rows.yaml"), callbacks)
    for name, is_private in (("a", False), ("south", True)):
        found = [residual.row_shares for upload, _, _ in recorder.of(name) for residual in upload.residuals]
        assert len(found) == 4
        assert all((shares.max() == shares.min()) == is_private for rows in found for shares in rows.values())


def test_without_uploaded_parts_nothing_is_spent(star: Make, fit: Make) -> None:
    privacy = UpdatePrivacy()
    trainer = fit(star("ab", "privacy: {clip_norm: 0.5, noise_multiplier: 1.0}"), [privacy])
    assert [trainer.world.states[name].bytes_up for name in "ab"] == [0, 0]
    assert _history(privacy, trainer.world) == {}


def test_with_too_much_noise_every_node_trains_as_if_alone(star: Make, fit: Make) -> None:
    def leaves(*callbacks: Any) -> Any:
        topology = star("abc", "privacy: {clip_norm: 0.5, noise_multiplier: 10.0}")
        return fit(topology, [*callbacks, UpdatePrivacy()], max_epochs=3).world

    alone, whole = leaves(), leaves(Averaging(download_rate=(1.0, 0.01)), AttentionAggregation())
    for name in "abc":
        for key, tensor in alone.states[name].parameters.items():
            torch.testing.assert_close(whole.states[name].parameters[key], tensor, rtol=1e-3, atol=1e-5)
    for key, tensor in whole.states["world"].parameters.items():  # and the federation does not move by noise
        torch.testing.assert_close(tensor, alone.states["world"].parameters[key], rtol=1e-3, atol=1e-3)
