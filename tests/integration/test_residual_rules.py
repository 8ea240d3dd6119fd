"""No residual reaches a node whose rules refuse it, or leaves one that does not share, in any world, at any time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from worldlm.callbacks import AttentionAggregation, Averaging, Compression, ResidualExchange, UpdatePrivacy
from worldlm.federation import residuals as residuals_of_federation
from worldlm.federation.messages import Residual
from worldlm.topology import Node, Residuals, Topology, parse_topology
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]


class Watch(FederationCallback):
    """Sees every residual that arrives, and every one that lies at a node to be used; keeps what the rules forbid.

    Args:
        rules: The tree whose rules must be obeyed; by default the world's.
    """

    def __init__(self, rules: Topology | None = None) -> None:
        self.rules = rules
        self.wrong: list[str] = []
        self.num_arrived = 0

    def _see(self, context: Any, residual: Residual, *, from_above: bool) -> None:
        topology = self.rules or context.world.topology
        node = topology.nodes[context.node.name]
        laws = node.settings.residuals.accept_from
        if from_above and laws is not None and residual.jurisdiction not in laws:
            self.wrong.append(f"{residual.origin} of {residual.jurisdiction} is at {node.name}, which accepts {laws}")
        here = {one.name for one in topology.path(node.name)}
        for left in (one for one in topology.path(residual.origin) if one.name not in here):
            if not left.settings.residuals.share:
                self.wrong.append(f"{residual.origin} is at {node.name}, but {left.name} does not share")

    def on_unpack(self, context: Any, sender: Any, message: Any) -> Any:
        for residual in message.residuals:
            self.num_arrived += 1
            self._see(context, residual, from_above=context.node in sender.children)
        return message

    def _see_inbox(self, context: Any) -> None:
        for residual in context.state.inbox:
            self._see(context, residual, from_above=True)

    def on_receive(self, context: Any, download: Any) -> None:
        self._see_inbox(context)

    def on_aggregate(self, context: Any, uploads: list[Any]) -> None:
        self._see_inbox(context)


def _pieces(compress: bool = False) -> list[Any]:
    residuals = ResidualExchange(num_residuals=2, min_similarity=-2.0)
    pieces = [Averaging(), AttentionAggregation(temperature=0.5), residuals, UpdatePrivacy()]
    return [*pieces, *([Compression()] if compress else [])]


def _with_rules(node: Node, rules: Callable[[Node], Residuals]) -> Node:
    own = replace(node.settings, residuals=rules(node))
    return replace(node, settings=own, children=tuple(_with_rules(child, rules) for child in node.children))


def _open(topology: Topology) -> Topology:
    """The same tree, in which everybody shares, and accepts from anywhere."""
    return replace(topology, root=_with_rules(topology.root, lambda _: Residuals()))


def few(num: int) -> Any:
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=num, suppress_health_check=quiet, phases=[Phase.generate])


def _check(data: st.DataObject, worlds: Make, fit: Make) -> None:
    topology, watch = data.draw(worlds(noises=data.draw(st.sampled_from([(), (0.0, 1.0)])))), Watch()
    fit(topology, [*_pieces(data.draw(st.booleans())), watch], limit_val_batches=0, max_epochs=3)
    assert watch.wrong == []


@few(5)
@given(data=st.data())
def test_rules_are_obeyed_in_any_world(data: st.DataObject, worlds: Make, fit: Make) -> None:
    _check(data, worlds, fit)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@few(300)
@given(data=st.data())
def test_rules_are_obeyed_in_many_worlds(data: st.DataObject, worlds: Make, fit: Make) -> None:
    _check(data, worlds, fit)


# ---------------------------------------------------------------------- rules that change on the way


def _check_change(data: st.DataObject, worlds: Make, fit: Make, save_everywhere: Make) -> None:
    """What waits when a run goes on obeys the rules that hold from then on."""
    saver, watch, topology = save_everywhere("on_train_epoch_end"), Watch(), data.draw(worlds(noises=()))
    fit(_open(topology), [*_pieces(), saver], limit_val_batches=0)
    path: Path = data.draw(st.sampled_from(saver.saved))
    fit(topology, [*_pieces(), watch], resume=path, limit_val_batches=0, max_epochs=4)
    assert watch.wrong == []


@few(4)
@given(data=st.data())
def test_new_rules_hold_for_what_waits(data: st.DataObject, worlds: Make, fit: Make, save_everywhere: Make) -> None:
    _check_change(data, worlds, fit, save_everywhere)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@few(200)
@given(data=st.data())
def test_new_rules_hold_for_what_waits_in_many_worlds(
    data: st.DataObject, worlds: Make, fit: Make, save_everywhere: Make
) -> None:
    _check_change(data, worlds, fit, save_everywhere)


# ---------------------------------------------------------------------- by hand

TREE = """
name: two
settings: {num_local_steps: 2, batch_size: 2, jurisdiction: eu}
root:
  name: world
  children:
    - name: A
      settings: {OF_A}
      children: [{name: a1, corpus: a, settings: {OF_LEAVES}}, {name: a2, corpus: b, settings: {OF_LEAVES}}]
    - name: B
      settings: {OF_B}
      children: [{name: b1, corpus: c}, {name: b2, corpus: d}]
"""


def _two(of_leaves: str = "", of_a: str = "", of_b: str = "") -> Topology:
    text = TREE.replace("OF_LEAVES", of_leaves).replace("OF_A", of_a).replace("OF_B", of_b)
    return parse_topology(text.replace("settings: {}", "settings: {jurisdiction: eu}"), "two.yaml")


RULES = {
    "accept": (_two(of_b="residuals: {accept_from: []}"), "is at B, which accepts ()"),
    "share": (_two(of_leaves="residuals: {share: false}"), "is at world, but a"),
    "share of a federation": (
        _two(of_a="residuals: {share: false}", of_leaves="residuals: {share: true}"),
        "is at world, but A does not share",
    ),
}


@pytest.mark.parametrize("what", RULES)
def test_what_would_be_found(what: str, fit: Make) -> None:
    rules, told = RULES[what]
    strict, lax = Watch(rules), Watch()
    fit(_two(), [*_pieces(), strict, lax], limit_val_batches=0, max_epochs=3)
    assert any(told in one for one in strict.wrong)
    assert (lax.wrong, lax.num_arrived > 0) == ([], True)


@pytest.mark.parametrize("what", RULES)
def test_what_waits_is_dropped_by_a_new_rule(what: str, fit: Make, save_everywhere: Make) -> None:
    """After a round, one of A's residuals waits for B; the next round would bring it there."""
    saver, (rules, _) = save_everywhere("on_train_epoch_end"), RULES[what]
    fit(_two(), [*_pieces(), saver], limit_val_batches=0, max_epochs=1)
    for topology, is_wrong in ((_two(), True), (rules, False)):
        watch = Watch(rules)
        fit(topology, [*_pieces(), watch], resume=saver.saved[-1], limit_val_batches=0, max_epochs=2)
        assert (watch.wrong != []) == is_wrong


def test_a_node_refuses_what_its_parent_should_not_have_sent(fit: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residuals_of_federation, "refusal", lambda residual, receiver: None)
    rules, _ = RULES["accept"]
    pieces, watch = _pieces(), Watch()
    world = fit(rules, [*pieces, watch], limit_val_batches=0, max_epochs=3).world
    assert watch.wrong != []  # it came
    exchange = next(one for one in pieces if isinstance(one, ResidualExchange))
    assert all(reason.endswith(": B accepts no residuals") for reason in exchange.refusals(world))
    assert sum(exchange.refusals(world).values()) == len(watch.wrong)
    assert not any(route.startswith("a") and not route.endswith("dropped") for route in exchange.routes(world))
