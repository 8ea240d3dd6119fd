"""A residual climbs, crosses the root, descends, is used once, and obeys the rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from worldlm.callbacks import AttentionAggregation, Averaging, ResidualExchange
from worldlm.topology import Topology, parse_topology
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]

# What every leaf learns: one coordinate of its keys. a1 is at odds with a2, and at home with b2.
LEARNT = {"a1": 1, "a2": 0, "b1": 2, "b2": 1}

TREE = """
name: two
settings: {num_local_steps: 2, batch_size: 2}
root:
  name: world
  children:
    - name: A
      settings: {A}
      children: [{name: a1, corpus: a, settings: {a1}}, {name: a2, corpus: b}]
    - name: B
      settings: {B}
      children: [{name: b1, corpus: c}, {name: b2, corpus: d, settings: {b2}}]
"""


class Learn(FederationCallback):
    """Sets what a leaf's keys learnt, by hand; remembers the residuals that lie at a node when it trains."""

    def __init__(self) -> None:
        self.inboxes: list[tuple[str, int]] = []

    def on_local_fit_start(self, context: Any, fit: Any) -> None:
        self.inboxes.append((context.node.name, len(context.state.inbox)))

    def on_local_fit_end(self, context: Any) -> None:
        for name, tensor in context.part("keys").items():
            tensor.copy_(context.world.reference[name])
            if name.endswith("Wqkv.weight"):
                tensor.view(-1)[LEARNT[context.node.name]] += 1.0


def _run(fit: Make, max_epochs: int, logger: Any = False, **settings: str) -> tuple[Any, ResidualExchange, Learn]:
    text = TREE
    for name in ("A", "B", "a1", "b2"):
        text = text.replace("{" + name + "}", "{" + settings.get(name, "") + "}")
    topology: Topology = parse_topology(text, "two.yaml")
    residuals, learn = ResidualExchange(), Learn()
    callbacks = [Averaging(), AttentionAggregation(), residuals, learn]
    return (
        fit(topology, callbacks, max_epochs=max_epochs, limit_val_batches=0, logger=logger, log_every_n_steps=1),
        residuals,
        learn,
    )


def _outbox(trainer: Any, residuals: ResidualExchange, name: str = "world") -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = residuals.memory(trainer.world.states[name]).get("outbox", {})
    return found


def _in_flight(trainer: Any, residuals: ResidualExchange) -> list[tuple[str, str, int]]:
    boxes = [_outbox(trainer, residuals, name) for name in trainer.world.states]
    return [(child, one["origin"], one["round"]) for box in boxes for child, found in box.items() for one in found]


def test_it_climbs_and_waits_at_the_root(fit: Make) -> None:
    trainer, residuals, _ = _run(fit, 1)
    # nothing was learnt before round 0, so that all weights are alike and the first name is chosen
    assert trainer.world.states["A"].attention == pytest.approx({"a1": 0.5, "a2": 0.5})
    assert _in_flight(trainer, residuals) == [("B", "a1", 0)]
    assert residuals.routes(trainer.world) == {"b1 > dropped": 1}  # b1 is like nobody in A
    kept = _outbox(trainer, residuals)["B"][0]
    assert kept["federation"] == "A"
    sent = trainer.world.states["a1"].parameters
    assert all(torch.equal(kept["keys"][name], sent[name]) for name in kept["keys"])
    assert all(kept["keys"][name].data_ptr() != sent[name].data_ptr() for name in kept["keys"])
    assert set(kept["values"]) == {name for name, part in trainer.world.partition.items() if part == "values"}


def test_it_descends_to_the_leaf_it_fits_and_is_used_once(fit: Make, recorder: Any) -> None:
    trainer, residuals, learn = _run(fit, 3, recorder)
    assert residuals.routes(trainer.world)["a1 > b2"] >= 1
    used = [(tag, step) for tag, _, step in recorder.scalars if "/residual_" in tag]
    assert ("b2/attention_down/residual_0_a1", 1) in used
    assert sum(tag.endswith("_a1") for tag, _ in used) == residuals.routes(trainer.world)["a1 > b2"]
    assert all(waiting == 0 for _, waiting in learn.inboxes)
    assert all(not state.inbox for state in trainer.world.states.values())
    assert all(number == 2 for _, _, number in _in_flight(trainer, residuals))  # those of earlier rounds are gone
    assert not residuals.refusals(trainer.world)


def test_it_brings_its_values_along(fit: Make, recorder: Any) -> None:
    with_residual, _, _ = _run(fit, 2, recorder)
    weights = {tag: value for tag, value, step in recorder.scalars if tag.startswith("b2/attention_down") and step == 1}
    assert sum(weights.values()) == pytest.approx(1.0)
    assert weights["b2/attention_down/residual_0_a1"] == pytest.approx(weights["b2/attention_down/self"])
    without, _, _ = _run(fit, 2, a1="residuals: {share: false}")
    left, right = (one.world.states["b2"].parameters for one in (with_residual, without))
    values = [name for name, part in with_residual.world.partition.items() if part == "values"]
    assert any(not torch.equal(left[name], right[name]) for name in values)


@pytest.mark.parametrize(
    ("settings", "reason", "route"),
    [
        (
            {"a1": "jurisdiction: eu", "B": "residuals: {accept_from: [us], share: true}, jurisdiction: us"},
            "residual of a1: B accepts residuals from us",
            "a1 > dropped",
        ),
        (
            {"a1": "jurisdiction: eu", "b2": "residuals: {accept_from: []}"},
            "residual of a1: b2 accepts no residuals",
            "a1 > B",
        ),
        ({"a1": "residuals: {share: false}"}, "a1 does not share residuals", ""),
        ({"A": "residuals: {share: false}", "a1": "residuals: {share: true}"}, "A does not share residuals", ""),
    ],
    ids=["federation refuses", "leaf refuses", "origin keeps", "federation keeps"],
)
def test_rules_are_obeyed_and_counted(settings: dict[str, str], reason: str, route: str, fit: Make) -> None:
    trainer, residuals, _ = _run(fit, 2, **settings)
    assert any(found.startswith(reason) and count >= 1 for found, count in residuals.refusals(trainer.world).items())
    assert residuals.routes(trainer.world)["a1 > b2"] == 0
    if route:
        assert residuals.routes(trainer.world)[route] >= 1
    else:
        assert not any(path.startswith("a1 ") for path in residuals.routes(trainer.world))
    if not route.endswith("> B"):
        assert all(origin != "a1" for child, origin, _ in _in_flight(trainer, residuals))
