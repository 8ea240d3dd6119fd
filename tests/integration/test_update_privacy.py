"""What leaves a private node is clipped and noised; what stays is not; the budget ends its part."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from worldlm.callbacks import AttentionAggregation, Averaging, ResidualExchange, UpdatePrivacy
from worldlm.federation.parameters import PARTS, clone, num_bytes
from worldlm.rounds import World
from worldlm.topology import Topology, parse_topology
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]


class Boast(FederationCallback):
    """Adds metrics to every upload."""

    def on_upload(self, context: Any, upload: Any) -> Any:
        return replace(upload, metrics={"loss": 1.0})


def _frozen(message: Any) -> Any:
    """Copy a message, whose tensors may be the sender's own."""
    return replace(message, parts={part: clone(tensors) for part, tensors in message.parts.items()})


class Border(FederationCallback):
    """Stands last, and sees what leaves and what stays."""

    def __init__(self) -> None:
        self.passed: list[tuple[Any, Any, dict[str, torch.Tensor]]] = []

    def on_sanitise(self, context: Any, upload: Any, download: Any) -> Any:
        home = {name: tensor.clone() for name, tensor in context.state.parameters.items()}
        self.passed.append((_frozen(upload), _frozen(download), home))
        return upload

    def of(self, name: str) -> list[tuple[Any, Any, dict[str, torch.Tensor]]]:
        return [one for one in self.passed if one[0].node == name]


def _flat(parts: Mapping[Any, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: tensor for tensors in parts.values() for name, tensor in tensors.items()}


def _length(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> float:
    return sum(float((left[name].double() - right[name].double()).square().sum()) for name in left) ** 0.5


def _history(privacy: UpdatePrivacy, world: World) -> dict[str, list[tuple[float, float, int]]]:
    ledgers = {name: privacy.ledger(state) for name, state in world.states.items()}
    return {name: ledger.history for name, ledger in ledgers.items() if ledger.history}


def _method(border: Border) -> list[Any]:
    return [Averaging(), AttentionAggregation(), Boast(), UpdatePrivacy(), border]


def test_what_leaves_is_clipped_and_what_stays_is_not(star: Make, fit: Make) -> None:
    border = Border()
    tighter = "settings: {privacy: {clip_norm: 0.05}}"
    fit(star("ab", "privacy: {clip_norm: 0.2}", b=tighter), _method(border))
    assert len(border.passed) == 4
    for upload, download, home in border.passed:
        clip_norm = {"a": 0.2, "b": 0.05}[upload.node]
        sent, start = _flat(upload.parts), _flat(download.parts)
        assert sent.keys() == home.keys()
        assert _length(home, start) > clip_norm  # or there was nothing to clip
        assert 0.99 * clip_norm < _length(sent, start) <= clip_norm * (1 + 1e-5)
        for part in ("keys", "values"):
            assert all(not torch.equal(sent[name], home[name]) for name in upload.parts[part])
        assert upload.metrics == {}


def test_who_is_not_private_sends_as_it_is(star: Make, fit: Make) -> None:
    border = Border()
    fit(star("ab", b="settings: {privacy: {clip_norm: 0.05}}"), _method(border))
    for upload, _, home in border.of("a"):
        assert all(torch.equal(tensor, home[name]) for name, tensor in _flat(upload.parts).items())
        assert upload.metrics == {"loss": 1.0}


def test_noise_is_in_what_leaves_and_in_nothing_else(star: Make, fit: Make) -> None:
    clipped, noised = Border(), Border()
    fit(star("ab", "privacy: {clip_norm: 0.2}"), _method(clipped), max_epochs=2)
    trainer = fit(star("ab", "privacy: {clip_norm: 0.2, noise_multiplier: 0.5}"), _method(noised), max_epochs=2)
    noises = []
    for name in "ab":
        (plain, _, home), (sent, _, home_too) = clipped.of(name)[0], noised.of(name)[0]
        assert all(torch.equal(home[key], home_too[key]) for key in home)
        difference = [
            (sent.parts[part][key] - plain.parts[part][key]).flatten() for part in PARTS for key in sent.parts[part]
        ]
        noises.append(torch.cat(difference))
        assert float(noises[-1].std()) == pytest.approx(0.5 * 0.2, rel=0.05)
        assert abs(float(noises[-1].mean())) < 5 * 0.1 / len(noises[-1]) ** 0.5
    assert not torch.allclose(*noises)
    privacy = next(one for one in trainer.callbacks if isinstance(one, UpdatePrivacy))
    assert _history(privacy, trainer.world) == {"a": [(0.5, 1.0, 2)], "b": [(0.5, 1.0, 2)]}  # the root sends to nobody


def test_a_spent_budget_ends_a_nodes_part_and_the_world_goes_on(
    star: Make, fit: Make, caplog: pytest.LogCaptureFixture
) -> None:
    private = "settings: {privacy: {clip_norm: 1.0, noise_multiplier: 1.0, max_epsilon: 5.5}}"
    border = Border()
    with caplog.at_level(logging.WARNING, "worldlm"):
        trainer = fit(star("ab", a=private), _method(border), max_epochs=3)
    assert {name: trainer.world.states[name].num_visits for name in "ab"} == {"a": 1, "b": 3}
    assert len(border.of("a")) == 1
    assert trainer.current_epoch == 3
    warnings = [one.getMessage() for one in caplog.records if "takes no more part" in one.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].startswith("a takes no more part from round 1")
    privacy = next(one for one in trainer.callbacks if isinstance(one, UpdatePrivacy))
    assert 0 < privacy.ledger(trainer.world.states["a"]).epsilon(1e-5) <= 5.5


def test_a_climbing_residual_is_a_release_of_its_own(tree: Topology, fit: Make) -> None:
    privacy = UpdatePrivacy()
    callbacks = [Averaging(), AttentionAggregation(), ResidualExchange(min_similarity=-2.0), privacy]
    found = _history(privacy, fit(tree, callbacks).world)
    # two uploads, each with one child's residual
    assert found == {"south": [(0.3, 1.0, 4)], "c": [(0.3, 1.0, 2)], "d": [(0.3, 1.0, 2)]}


def test_a_residual_beyond_the_budget_stays(fit: Make, caplog: pytest.LogCaptureFixture) -> None:
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
    privacy, border = UpdatePrivacy(), Border()
    callbacks = [Averaging(), AttentionAggregation(), ResidualExchange(min_similarity=-2.0), privacy, border]
    with caplog.at_level(logging.WARNING, "worldlm"):
        trainer = fit(parse_topology(text, "tight.yaml"), callbacks, max_epochs=1)
    ((upload, _, _),) = border.of("south")
    assert upload.residuals == ()
    assert _history(privacy, trainer.world)["south"] == [(1.0, 1.0, 1)]
    assert "stays in south" in caplog.text
    assert trainer.world.states["south"].bytes_up == num_bytes(trainer.world.states["south"].parameters)


def test_a_private_node_that_diverged_sends_noise_and_the_world_goes_on(
    star: Make, fit: Make, caplog: pytest.LogCaptureFixture
) -> None:
    class Diverge(FederationCallback):
        def on_local_fit_end(self, context: Any) -> None:
            if (context.round, context.node.name) == (1, "b"):
                next(iter(context.state.parameters.values())).fill_(torch.nan)

    topology = star("ab", "privacy: {clip_norm: 0.2, noise_multiplier: 1.0}")
    trainer = fit(topology, [Averaging(), privacy := UpdatePrivacy(), Diverge()], limit_val_batches=0, max_epochs=3)
    told = "round 1: what b would send holds NaN or infinite values: it sends its noise alone"
    assert [one for one in caplog.messages if "NaN" in one] == [told]
    assert _history(privacy, trainer.world)["b"] == [(1.0, 1.0, 3)]  # nobody learns that it diverged
    assert all(bool(tensor.isfinite().all()) for tensor in trainer.world.states["world"].parameters.values())


def test_privacy_that_nobody_provides_is_an_error_before_the_first_step(star: Make, trainer_for: Make) -> None:
    topology = star("ab", "privacy: {clip_norm: 0.2}")
    with pytest.raises(ValueError, match=r"asks for privacy at world, a, b.*worldlm\.callbacks\.UpdatePrivacy"):
        trainer_for(topology, [Averaging()])
    topology = star("ab", "example_privacy: {clip_norm: 0.2}")
    with pytest.raises(ValueError, match=r"asks for example_privacy.*worldlm\.callbacks\.ExamplePrivacy"):
        trainer_for(topology, [Averaging(), UpdatePrivacy()])


def test_a_climbing_residual_is_clipped_once_more(fit: Make) -> None:
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
    border = Border()
    callbacks = [Averaging(), AttentionAggregation(), ResidualExchange(min_similarity=-2.0), UpdatePrivacy(), border]
    fit(parse_topology(text, "clipped.yaml"), callbacks)
    lengths = [
        _length({**residual.keys, **residual.values}, _flat(download.parts))
        for upload, download, _ in border.of("south")
        for residual in upload.residuals
    ]
    assert len(lengths) == 2
    assert all(0 < length <= 0.05 * (1 + 1e-5) for length in lengths)


def test_what_sends_nothing_spends_nothing(star: Make, fit: Make) -> None:
    privacy = UpdatePrivacy()
    trainer = fit(star("ab", "privacy: {clip_norm: 0.5, noise_multiplier: 1.0}"), [privacy])
    assert [trainer.world.states[name].bytes_up for name in "ab"] == [0, 0]
    assert _history(privacy, trainer.world) == {}


def test_noise_that_drowns_a_parent_leaves_every_node_as_if_it_trained_alone(
    star: Make, fit: Make, differences: Make
) -> None:
    """Keys by distance follow no parent that noise carried away: not a bit of it gets into a leaf."""

    def leaves(*callbacks: Any) -> dict[str, Any]:
        topology = star("abc", "privacy: {clip_norm: 0.5, noise_multiplier: 10.0}")
        world = fit(topology, [*callbacks, UpdatePrivacy()], max_epochs=3).world
        return {name: world.states[name].parameters for name in "abc"}

    def whole(**options: Any) -> dict[str, Any]:
        attention = AttentionAggregation(temperature=0.05, query="mean", **options)
        return leaves(Averaging(download_rate=(1.0, 0.01), attentive=True), attention)

    alone = leaves()
    assert differences(whole(similarity="distance", self_similarity=0.7), alone) == []
    assert differences(whole(similarity="cosine"), alone) != []
