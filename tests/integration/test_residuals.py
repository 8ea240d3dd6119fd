"""A residual is sent up to the root and down to another branch, is used once, and obeys the rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from worldlm.callbacks import AttentionAggregation, Averaging, ResidualExchange
from worldlm.topology import Topology, parse_topology
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]

# The coordinate of its keys that each leaf learns: a1 is unlike a2, and like b2.
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
    """Sets what a leaf's keys learnt, by hand; records the number of unused residuals at a node when it trains."""

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
    outbox: dict[str, list[dict[str, Any]]] = residuals.memory(trainer.world.states[name]).get("outbox", {})
    return outbox


def _in_flight(trainer: Any, residuals: ResidualExchange) -> list[tuple[str, str, int]]:
    boxes = [_outbox(trainer, residuals, name) for name in trainer.world.states]
    queues = [(child, queue) for box in boxes for child, queue in box.items()]
    return [(child, residual["origin"], residual["round"]) for child, queue in queues for residual in queue]


def test_a_residual_is_sent_up_and_queued_at_the_root(fit: Make) -> None:
    trainer, residuals, _ = _run(fit, 1)
    # nothing was learnt before round 0, so all weights are equal and the first name is selected
    assert trainer.world.states["A"].attention == pytest.approx({"a1": 0.5, "a2": 0.5})
    assert _in_flight(trainer, residuals) == [("B", "a1", 0)]
    assert residuals.routes(trainer.world) == {"b1 > dropped": 1}  # b1 is unlike all nodes of A
    waiting = _outbox(trainer, residuals)["B"][0]
    assert waiting["federation"] == "A"
    sent = trainer.world.states["a1"].parameters
    assert all(torch.equal(waiting["keys"][name], sent[name]) for name in waiting["keys"])
    assert all(waiting["keys"][name].data_ptr() != sent[name].data_ptr() for name in waiting["keys"])
    assert set(waiting["values"]) == {name for name, part in trainer.world.partition.items() if part == "values"}


def test_a_residual_is_delivered_to_the_leaf_it_fits_and_used_once(fit: Make, recorder: Any) -> None:
    trainer, residuals, learn = _run(fit, 3, recorder)
    assert residuals.routes(trainer.world)["a1 > b2"] >= 1
    used = [(tag, step) for tag, _, step in recorder.scalars if "/residual_" in tag]
    assert ("b2/attention_down/residual_0_a1", 2) in used
    assert sum(tag.endswith("_a1") for tag, _ in used) == residuals.routes(trainer.world)["a1 > b2"]
    assert all(waiting == 0 for _, waiting in learn.inboxes)
    assert all(not state.inbox for state in trainer.world.states.values())
    assert all(
        number == 2 for _, _, number in _in_flight(trainer, residuals)
    )  # residuals of earlier rounds are used up
    assert not residuals.refusals(trainer.world)


def test_a_residual_contains_its_values(fit: Make, recorder: Any) -> None:
    with_residual, _, _ = _run(fit, 2, recorder)
    weights = {tag: value for tag, value, step in recorder.scalars if tag.startswith("b2/attention_down") and step == 2}
    assert sum(weights.values()) == pytest.approx(1.0)
    assert weights["b2/attention_down/residual_0_a1"] == pytest.approx(weights["b2/attention_down/self"])
    without, _, _ = _run(fit, 2, a1="residuals: {share: false}")
    left, right = (trainer.world.states["b2"].parameters for trainer in (with_residual, without))
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
    ids=["federation rejects", "leaf rejects", "origin does not share", "federation does not share"],
)
def test_rules_are_obeyed_and_counted(settings: dict[str, str], reason: str, route: str, fit: Make) -> None:
    trainer, residuals, _ = _run(fit, 2, **settings)
    assert any(text.startswith(reason) and count >= 1 for text, count in residuals.refusals(trainer.world).items())
    assert residuals.routes(trainer.world)["a1 > b2"] == 0
    if route:
        assert residuals.routes(trainer.world)[route] >= 1
    else:
        assert not any(path.startswith("a1 ") for path in residuals.routes(trainer.world))
    if not route.endswith("> B"):
        assert all(origin != "a1" for child, origin, _ in _in_flight(trainer, residuals))
