"""No residual reaches a node whose rules reject it, or leaves a node that does not share, in any world."""

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


class RuleCheck(FederationCallback):
    """Checks every residual that a node receives or is about to use, and records violations of the rules.

    Args:
        rules: The topology whose rules apply; by default that of the world.
    """

    def __init__(self, rules: Topology | None = None) -> None:
        self.rules = rules
        self.violations: list[str] = []
        self.num_arrived = 0

    def _check_residual(self, context: Any, residual: Residual, *, from_above: bool) -> None:
        topology = self.rules or context.world.topology
        node = topology.nodes[context.node.name]
        accepted = node.settings.residuals.accept_from
        if from_above and accepted is not None and residual.jurisdiction not in accepted:
            origin = f"{residual.origin} of {residual.jurisdiction}"
            self.violations.append(f"{origin} is at {node.name}, which accepts {accepted}")
        ancestors = {ancestor.name for ancestor in topology.path(node.name)}
        for left in (ancestor for ancestor in topology.path(residual.origin) if ancestor.name not in ancestors):
            if not left.settings.residuals.share:
                self.violations.append(f"{residual.origin} is at {node.name}, but {left.name} does not share")

    def on_unpack(self, context: Any, sender: Any, message: Any) -> Any:
        for residual in message.residuals:
            self.num_arrived += 1
            self._check_residual(context, residual, from_above=context.node in sender.children)
        return message

    def _check_inbox(self, context: Any) -> None:
        for residual in context.state.inbox:
            self._check_residual(context, residual, from_above=True)

    def on_receive(self, context: Any, download: Any) -> None:
        self._check_inbox(context)

    def on_aggregate(self, context: Any, uploads: list[Any]) -> None:
        self._check_inbox(context)


def _pieces(compress: bool = False) -> list[Any]:
    residuals = ResidualExchange(num_residuals=2, min_similarity=-2.0)
    pieces = [Averaging(), AttentionAggregation(temperature=0.5), residuals, UpdatePrivacy()]
    return [*pieces, *([Compression()] if compress else [])]


def _with_rules(node: Node, rules: Callable[[Node], Residuals]) -> Node:
    own = replace(node.settings, residuals=rules(node))
    return replace(node, settings=own, children=tuple(_with_rules(child, rules) for child in node.children))


def _open(topology: Topology) -> Topology:
    """The same tree without rules: every node shares, and accepts residuals from any jurisdiction."""
    return replace(topology, root=_with_rules(topology.root, lambda _: Residuals()))


def examples(num: int) -> Any:
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=num, suppress_health_check=quiet, phases=[Phase.generate])


def _check(data: st.DataObject, worlds: Make, fit: Make) -> None:
    topology, rule_check = data.draw(worlds(noises=data.draw(st.sampled_from([(), (0.0, 1.0)])))), RuleCheck()
    fit(topology, [*_pieces(data.draw(st.booleans())), rule_check], limit_val_batches=0, max_epochs=3)
    assert rule_check.violations == []


@examples(5)
@given(data=st.data())
def test_rules_are_obeyed_in_any_world(data: st.DataObject, worlds: Make, fit: Make) -> None:
    _check(data, worlds, fit)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@examples(300)
@given(data=st.data())
def test_rules_are_obeyed_in_many_worlds(data: st.DataObject, worlds: Make, fit: Make) -> None:
    _check(data, worlds, fit)


# ---------------------------------------------------------------------- rules that change when a run resumes


def _check_change(data: st.DataObject, worlds: Make, fit: Make, save_everywhere: Make) -> None:
    """Residuals queued in a checkpoint obey the rules of the topology with which the run resumes."""
    saver, rule_check, topology = save_everywhere("on_train_epoch_end"), RuleCheck(), data.draw(worlds(noises=()))
    fit(_open(topology), [*_pieces(), saver], limit_val_batches=0)
    path: Path = data.draw(st.sampled_from(saver.saved))
    fit(topology, [*_pieces(), rule_check], resume=path, limit_val_batches=0, max_epochs=4)
    assert rule_check.violations == []


@examples(4)
@given(data=st.data())
def test_new_rules_apply_to_queued_residuals(
    data: st.DataObject, worlds: Make, fit: Make, save_everywhere: Make
) -> None:
    _check_change(data, worlds, fit, save_everywhere)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@examples(200)
@given(data=st.data())
def test_new_rules_apply_to_queued_residuals_in_many_worlds(
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
def test_violations_are_found(what: str, fit: Make) -> None:
    rules, message = RULES[what]
    strict, lax = RuleCheck(rules), RuleCheck()
    fit(_two(), [*_pieces(), strict, lax], limit_val_batches=0, max_epochs=3)
    assert any(message in violation for violation in strict.violations)
    assert (lax.violations, lax.num_arrived > 0) == ([], True)


@pytest.mark.parametrize("what", RULES)
def test_a_new_rule_drops_queued_residuals(what: str, fit: Make, save_everywhere: Make) -> None:
    """After a round, a residual of A is queued for B, and the next round would send it."""
    saver, (rules, _) = save_everywhere("on_train_epoch_end"), RULES[what]
    fit(_two(), [*_pieces(), saver], limit_val_batches=0, max_epochs=1)
    for topology, is_wrong in ((_two(), True), (rules, False)):
        rule_check = RuleCheck(rules)
        fit(topology, [*_pieces(), rule_check], resume=saver.saved[-1], limit_val_batches=0, max_epochs=2)
        assert (rule_check.violations != []) == is_wrong


def test_a_node_rejects_a_residual_that_its_parent_should_not_have_sent(
    fit: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residuals_of_federation, "refusal", lambda residual, receiver: None)
    rules, _ = RULES["accept"]
    pieces, rule_check = _pieces(), RuleCheck()
    world = fit(rules, [*pieces, rule_check], limit_val_batches=0, max_epochs=3).world
    assert rule_check.violations != []  # B received it
    exchange = next(callback for callback in pieces if isinstance(callback, ResidualExchange))
    assert all(reason.endswith(": B accepts no residuals") for reason in exchange.refusals(world))
    assert sum(exchange.refusals(world).values()) == len(rule_check.violations)
    assert not any(route.startswith("a") and not route.endswith("dropped") for route in exchange.routes(world))
