"""Ledgers contain exactly the releases that happened, with resumes, misses, sampling and sub-rounds."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import groupby
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from worldlm.callbacks import (
    AttentionAggregation,
    Averaging,
    ExamplePrivacy,
    ResidualExchange,
    UpdatePrivacy,
)
from worldlm.federation.messages import Download
from worldlm.topology import Node, Topology
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]
History = tuple[tuple[float, float, int], ...]

DELTA = 1e-5


@cache
def _opacus(history: History, kind: type) -> float:
    """Compute epsilon of these releases with Opacus directly."""
    if any(noise == 0 for noise, _, _ in history):
        return math.inf
    accountant = kind()
    accountant.history = list(history)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return max(0.0, float(accountant.get_epsilon(delta=DELTA))) if history else 0.0


@cache
def _independent(history: History) -> float:
    """Compute epsilon without WorldLM: with scipy if every sample rate is 1, else with Opacus' PRV accountant."""
    if not history or any(noise == 0 or rate != 1.0 for noise, rate, _ in history):
        return _opacus(history, PRVAccountant)
    mu = math.sqrt(sum(steps / noise**2 for noise, _, steps in history))

    def excess(epsilon: float) -> float:  # theorem 8 of arXiv 1805.06530
        far = math.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu))
        return float(norm.cdf(mu / 2 - epsilon / mu) - far - DELTA)

    return float(brentq(excess, 0.0, 1000.0, xtol=1e-12))


class Auditor(FederationCallback):
    """Counts every node's releases and steps independently, and compares them with the ledgers after every round."""

    def __init__(self) -> None:
        self.releases: dict[str, list[tuple[float, float]]] = {}
        self.steps: dict[str, list[tuple[float, float]]] = {}
        self.epsilons: dict[str, float] = {}
        self.num_rounds = 0

    def state_dict(self) -> dict[str, Any]:
        return {"releases": self.releases, "steps": self.steps, "epsilons": self.epsilons}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, {**value})

    def on_send(self, context: Any, receiver: Any, message: Any) -> Any:
        privacy = context.node.settings.privacy
        if privacy is not None and not isinstance(message, Download):
            new = [(privacy.noise_multiplier, 1.0)] * (1 + len(message.residuals))
            self.releases[message.node] = [*self.releases.get(message.node, []), *new]
        return message

    def on_before_optimizer_step(self, trainer: Any, *args: Any) -> None:
        node = trainer.topology.nodes[trainer.active_node]
        if (privacy := node.settings.example_privacy) is not None:
            of_thirteen = (node.settings.batch_size or 2) / 13
            self.steps[node.name] = [*self.steps.get(node.name, []), (privacy.noise_multiplier, of_thirteen)]

    def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
        self.num_rounds += 1
        for kind, counted in ((UpdatePrivacy, self.releases), (ExamplePrivacy, self.steps)):
            (callback,) = [callback for callback in trainer.callbacks if isinstance(callback, kind)]
            for name, state in trainer.world.states.items():
                ledger = callback.ledger(state)
                assert tuple(ledger.history) == _runs(counted.get(name, [])), (kind, name)
                now, before = ledger.epsilon(DELTA), self.epsilons.get(f"{kind.__name__} {name}", 0.0)
                assert now >= before, (kind, name)
                self.epsilons[f"{kind.__name__} {name}"] = now
                self._hold_budget(trainer.topology.nodes[name], kind is UpdatePrivacy, now)

    @staticmethod
    def _hold_budget(node: Node, of_updates: bool, epsilon: float) -> None:
        privacy = node.settings.privacy if of_updates else node.settings.example_privacy
        assert privacy is None or privacy.max_epsilon is None or epsilon <= privacy.max_epsilon

    def check(self, trainer: Any) -> None:
        """Compare the ledgers with Opacus' accountants on the counted releases and steps."""
        for kind, counted in ((UpdatePrivacy, self.releases), (ExamplePrivacy, self.steps)):
            (callback,) = [callback for callback in trainer.callbacks if isinstance(callback, kind)]
            for name, state in trainer.world.states.items():
                history, ledger = _runs(counted.get(name, [])), callback.ledger(state)
                assert ledger.epsilon(DELTA) == pytest.approx(_independent(history), abs=1e-9)
                assert ledger.epsilon_rdp(DELTA) == pytest.approx(_opacus(history, RDPAccountant), abs=1e-9)


def _runs(steps: list[tuple[float, float]]) -> History:
    return tuple((*step, len(list(group))) for step, group in groupby(map(tuple, steps)))  # type: ignore[misc]


def _pieces() -> list[Any]:
    residuals = ResidualExchange(num_residuals=1)
    return [Averaging(), AttentionAggregation(temperature=0.5), residuals, UpdatePrivacy(), ExamplePrivacy()]


def _with_budget(node: Node, most: float | None) -> Node:
    own = node.settings
    for kind in ("privacy", "example_privacy"):
        privacy = getattr(own, kind)
        if privacy is not None and privacy.noise_multiplier > 0:
            own = replace(own, **{kind: replace(privacy, max_epsilon=most)})
    return replace(node, settings=own, children=tuple(_with_budget(child, most) for child in node.children))


def examples(num: int) -> Any:
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=num, suppress_health_check=quiet, phases=[Phase.generate])


def _check(data: st.DataObject, worlds: Make, fit: Make, save_everywhere: Make, **options: Any) -> None:
    drawn: Topology = data.draw(worlds(**options))
    topology = replace(drawn, root=_with_budget(drawn.root, data.draw(st.sampled_from([None, 8.0, 14.0]))))
    saver = save_everywhere("on_train_batch_start", "on_train_batch_end", "on_train_epoch_end")
    whole, auditor = fit(topology, [*_pieces(), (first := Auditor()), saver], limit_val_batches=0), Auditor()
    first.check(whole)
    if not saver.saved:  # no node was drawn, or the budgets allow nothing
        return
    resumed = fit(topology, [*_pieces(), auditor], resume=data.draw(st.sampled_from(saver.saved)), limit_val_batches=0)
    assert (auditor.releases, auditor.steps, auditor.epsilons) == (first.releases, first.steps, first.epsilons)
    auditor.check(resumed)


@examples(4)
@given(data=st.data())
def test_ledgers_match_the_releases(data: st.DataObject, worlds: Make, fit: Make, save_everywhere: Make) -> None:
    _check(data, worlds, fit, save_everywhere, max_nodes=5, noises=(1.0,))  # other accountants are slow


@pytest.mark.slow
@pytest.mark.timeout(1800)
@examples(60)
@given(data=st.data())
def test_ledgers_match_the_releases_in_many_worlds(
    data: st.DataObject, worlds: Make, fit: Make, save_everywhere: Make
) -> None:
    _check(data, worlds, fit, save_everywhere, examples=True)


# ---------------------------------------------------------------------- by hand


def _ledgers(trainer: Any, kind: type) -> dict[str, list[tuple[float, float, int]]]:
    (callback,) = [callback for callback in trainer.callbacks if isinstance(callback, kind)]
    return {name: callback.ledger(state).history for name, state in trainer.world.states.items()}


def test_every_upload_of_a_round_counts(star: Make, fit: Make) -> None:
    topology = star("ab", "num_subrounds: 1, privacy: {clip_norm: 0.5, noise_multiplier: 1.0}")
    root = replace(topology.root, settings=replace(topology.root.settings, num_subrounds=3))
    trainer = fit(replace(topology, root=root), [Averaging(), UpdatePrivacy()], limit_val_batches=0)
    assert _ledgers(trainer, UpdatePrivacy) == {"world": [], "a": [(1.0, 1.0, 6)], "b": [(1.0, 1.0, 6)]}


def test_a_rejected_upload_counts_as_a_release(star: Make, fit: Make) -> None:
    topology = star("ab", "privacy: {clip_norm: 0.5, noise_multiplier: 1.0}")
    root = replace(topology.root, settings=replace(topology.root.settings, max_update_norm=1e-3))
    trainer = fit(replace(topology, root=root), [Averaging(), UpdatePrivacy()], limit_val_batches=0)
    assert trainer.world.states["world"].refused == {"a": 2, "b": 2}
    assert _ledgers(trainer, UpdatePrivacy)["a"] == [(1.0, 1.0, 2)]


def test_training_steps_count_even_if_the_upload_is_lost(star: Make, fit: Make) -> None:
    """A dropped upload is not a release, but the node's training steps are, since its weights keep their result."""
    both = "example_privacy: {clip_norm: 0.5, noise_multiplier: 1.0}, privacy: {clip_norm: 0.5, noise_multiplier: 1.0}"
    topology = star("ab", both, b="settings: {dropout: 0.9}")
    callback = ExamplePrivacy()
    trainer = fit(topology, [Averaging(), UpdatePrivacy(), callback], limit_val_batches=0)
    missed = trainer.world.states["b"].num_missed
    assert missed > 0
    assert Counter(_ledgers(trainer, ExamplePrivacy)) == {"world": [], "a": [(1.0, 2 / 13, 4)], "b": [(1.0, 2 / 13, 4)]}
    sent = [(1.0, 1.0, 2 - missed)] if missed < 2 else []
    assert _ledgers(trainer, UpdatePrivacy) == {"world": [], "a": [(1.0, 1.0, 2)], "b": sent}
    spent = callback.ledger(trainer.world.states["b"]).epsilon(DELTA)
    assert spent == pytest.approx(_opacus(((1.0, 2 / 13, 4),), PRVAccountant), abs=1e-9)
