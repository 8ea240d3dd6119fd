"""A callback rejects bad arguments, and callbacks that it cannot be combined with, before training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from worldlm.callbacks import AttentionAggregation, Averaging, ResidualExchange
from worldlm.rounds import Method
from worldlm.topology import Node, OuterOptimizer, Settings, Topology
from worldlm.trainer.method_checks import check_parts


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Averaging(parts=[]), "parts must be a list of some of backbone, keys, values"),
        (lambda: Averaging(parts="keys"), "parts must be a list .* got 'keys'"),  # type: ignore[arg-type]
        (lambda: Averaging(parts=["backbon"]), "got 'backbon'; did you mean 'backbone'"),  # type: ignore[list-item]
        (lambda: Averaging(parts=["spine"]), "each of parts must be one of backbone, keys, values, got 'spine'"),  # type: ignore[list-item]
        (lambda: Averaging(weights="votes"), "weights must be one of num_tokens, uniform, got .votes"),  # type: ignore[arg-type]
        (lambda: Averaging(optimizer="Optimizer"), "no optimizer 'Optimizer'"),
        (lambda: Averaging(optimizer="SGD", arguments={"speed": 1}), "SGD.*speed"),
        (lambda: Averaging(optimizer="SGD", arguments={"lr": -1.0}), "Invalid learning rate"),
        (lambda: AttentionAggregation(temperature=0.0), "temperature must be above 0"),
        (lambda: AttentionAggregation(temperature=(0.3, -1.0)), "temperature must be above 0, or two such numbers"),
        (lambda: AttentionAggregation(temperature=(0.3, 0.2, 0.1)), "temperature must be above 0, or two such numbers"),
        (lambda: ResidualExchange(num_residuals=0), "num_residuals must be at least 1"),
    ],
)
def test_arguments_out_of_range(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def _topology(settings: Settings | None = None) -> Topology:
    leaf = Node(name="a", corpus="a", settings=Settings(num_local_steps=1))
    root = Node(name="world", children=(leaf,), settings=settings or Settings(), source="star.yaml:3")
    return Topology(name="star", root=root)


def test_two_callbacks_cannot_merge_the_same_part() -> None:
    attention = AttentionAggregation()
    with pytest.raises(ValueError, match="Averaging and AttentionAggregation both merge keys:"):
        check_parts([Averaging(parts=["backbone", "keys"]), ResidualExchange(num_residuals=1), attention])
    with pytest.raises(ValueError, match="AttentionAggregation and AttentionAggregation both merge keys, values"):
        check_parts([attention, AttentionAggregation(temperature=0.5)])
    check_parts([Averaging(parts=["backbone"]), ResidualExchange(num_residuals=1), attention])


def test_an_outer_optimizer_of_the_topology_is_checked_before_training() -> None:
    averaging = Averaging()
    settings = Settings(outer_optimizer=OuterOptimizer(name="SDG"))
    with pytest.raises(
        ValueError, match=r"star\.yaml:3: outer_optimizer of world: torch\.optim has no optimizer 'SDG'"
    ):
        Method([averaging]).check(_topology(settings))


def test_residual_exchange_needs_attention() -> None:
    residuals = ResidualExchange(num_residuals=1)
    with pytest.raises(ValueError, match="ResidualExchange needs AttentionAggregation"):
        Method([residuals, Averaging(parts=["backbone", "values"])]).check(_topology())
    Method([AttentionAggregation(), residuals]).check(_topology())


def test_averagings_of_different_parts_have_different_state_keys() -> None:
    assert Averaging(parts=["backbone"]).state_key != Averaging(parts=["values"]).state_key
