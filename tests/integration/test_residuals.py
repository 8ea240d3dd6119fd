"""A residual climbs to the root, helps related nodes, is answered, and obeys the rules."""

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
    """Sets what a leaf's keys learnt, by hand."""

    def on_local_fit_end(self, context: Any) -> None:
        for name, tensor in context.part("keys").items():
            tensor.copy_(context.world.reference[name])
            if name.endswith(("Wqkv.weight", "q_proj.weight")):
                tensor.view(-1)[LEARNT[context.node.name]] += 1.0


def _run(fit: Make, max_epochs: int, **settings: str) -> tuple[Any, ResidualExchange]:
    text = TREE
    for name in ("A", "B", "a1", "b2"):
        text = text.replace("{" + name + "}", "{" + settings.get(name, "") + "}")
    topology: Topology = parse_topology(text, "two.yaml")
    residuals = ResidualExchange(num_residuals=1)
    callbacks = [Averaging(), AttentionAggregation(), residuals, Learn()]
    return fit(topology, callbacks, max_epochs=max_epochs, limit_val_batches=0, log_every_n_steps=1), residuals


def test_a_residual_is_kept_on_its_way_and_answered(fit: Make) -> None:
    trainer, residuals = _run(fit, 1)
    # both children of A are equally unlike each other, and the first name is selected
    (waiting,) = residuals.memory(trainer.world.states["world"])["known"]["A"]
    assert (waiting["origin"], waiting["federation"], waiting["share"]) == ("a1", "A", 0.5)
    sent = trainer.world.states["a1"].parameters
    assert all(torch.equal(waiting["keys"][name], sent[name]) for name in waiting["keys"])
    assert all(waiting["keys"][name].data_ptr() != sent[name].data_ptr() for name in waiting["keys"])
    assert set(waiting["values"]) == {name for name, part in trainer.world.partition.items() if part == "values"}
    assert residuals.routes(trainer.world) == {}
    trainer, residuals = _run(fit, 2)
    # a1 learns what b2 learns, which is what is left of B without the residual of b1
    assert residuals.routes(trainer.world)["a1 > B"] == 1
    attention = trainer.world.states["world"].attention
    assert attention["a1"]["B"] > attention["a1"]["b1"]
    assert attention["B"]["a1"] > attention["B"]["A"]  # in turn, B receives more of a1 than of a2
    assert not residuals.refusals(trainer.world)


def test_related_nodes_benefit_from_a_residual(fit: Make) -> None:
    shared, kept = _run(fit, 3)[0], _run(fit, 3, a1="residuals: {share: false}")[0]
    for name in ("a1", "b2"):
        left, right = (trainer.world.states[name].parameters for trainer in (shared, kept))
        values = [key for key, part in shared.world.partition.items() if part == "values"]
        assert any(not torch.equal(left[key], right[key]) for key in values)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"a1": "jurisdiction: eu", "B": "residuals: {accept_from: [us], share: true}, jurisdiction: us"},
            "residual of a1: B accepts residuals from us",
        ),
        ({"a1": "jurisdiction: eu", "b2": "residuals: {accept_from: []}"}, "residual of a1: b2 accepts no residuals"),
        ({"a1": "residuals: {share: false}"}, "a1 does not share residuals"),
        ({"A": "residuals: {share: false}", "a1": "residuals: {share: true}"}, "A does not share residuals"),
    ],
    ids=["federation rejects", "leaf rejects", "origin does not share", "federation does not share"],
)
def test_rules_are_obeyed_and_counted(settings: dict[str, str], reason: str, fit: Make) -> None:
    trainer, residuals = _run(fit, 2, **settings)
    assert any(text.startswith(reason) and count >= 1 for text, count in residuals.refusals(trainer.world).items())
    assert "a1" not in trainer.world.states["world"].attention["B"]
    is_shared = not reason.endswith("does not share residuals")
    assert (residuals.routes(trainer.world)["a1 > B"] == 1) == is_shared
