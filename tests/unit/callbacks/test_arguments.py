"""A callback says at once what is wrong with its arguments, or with its company."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from worldlm.callbacks import AttentionAggregation, Averaging, ResidualExchange
from worldlm.rounds.method import check_parts
from worldlm.topology import Node, OuterOptimizer, Settings, Topology


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Averaging(parts=[]), "parts must be some of backbone, keys, values"),
        (lambda: Averaging(parts=["spine"]), "got .'spine'."),  # type: ignore[list-item]
        (lambda: Averaging(weights="votes"), "weights must be num_tokens or uniform"),  # type: ignore[arg-type]
        (lambda: Averaging(optimizer="Optimizer"), "no optimizer 'Optimizer'"),
        (lambda: Averaging(optimizer="SGD", arguments={"speed": 1}), "SGD.*speed"),
        (lambda: Averaging(optimizer="SGD", arguments={"lr": -1.0}), "Invalid learning rate"),
        (lambda: AttentionAggregation(temperature=0.0), "temperature must be above 0"),
        (lambda: AttentionAggregation(query="child"), "query must be own or mean, got 'child'"),  # type: ignore[arg-type]
        (lambda: AttentionAggregation(similarity="near"), "similarity must be cosine, dot or distance"),  # type: ignore[arg-type]
        (lambda: AttentionAggregation(granularity="layer"), "granularity must be"),  # type: ignore[arg-type]
        (lambda: ResidualExchange(num_residuals=0), "num_residuals must be at least 1"),
    ],
)
def test_arguments_out_of_range(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def _trainer(*callbacks: Any, settings: Settings | None = None) -> Any:
    leaf = Node(name="a", corpus="a", settings=Settings(num_local_steps=1))
    root = Node(name="world", children=(leaf,), settings=settings or Settings(), source="star.yaml:3")
    return SimpleNamespace(callbacks=[*callbacks], topology=Topology(name="star", root=root))


def test_two_callbacks_must_not_merge_one_part() -> None:
    attention = AttentionAggregation()
    with pytest.raises(ValueError, match="keys: merged by Averaging and by AttentionAggregation too"):
        check_parts([Averaging(parts=["backbone", "keys"]), ResidualExchange(), attention])
    with pytest.raises(ValueError, match="keys, values: merged by AttentionAggregation and by AttentionAggregation"):
        check_parts([attention, AttentionAggregation(temperature=0.5)])
    check_parts([Averaging(parts=["backbone"]), ResidualExchange(), attention])


def test_a_federations_outer_optimizer_is_tried_before_the_run() -> None:
    averaging = Averaging()
    wrong = Settings(outer_optimizer=OuterOptimizer(name="SDG"))
    with pytest.raises(
        ValueError, match=r"star\.yaml:3: outer_optimizer of world: torch\.optim has no optimizer 'SDG'"
    ):
        averaging.setup(_trainer(averaging, settings=wrong), None, "fit")


def test_residuals_need_attention() -> None:
    residuals = ResidualExchange()
    with pytest.raises(ValueError, match="ResidualExchange needs AttentionAggregation"):
        residuals.setup(_trainer(residuals, Averaging(parts=["backbone", "values"])), None, "fit")
    residuals.setup(_trainer(residuals, AttentionAggregation()), None, "fit")


def test_two_averagings_keep_two_states() -> None:
    assert Averaging(parts=["backbone"]).state_key != Averaging(parts=["values"]).state_key
