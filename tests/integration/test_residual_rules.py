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
from worldlm.federation.messages import Upload
from worldlm.topology import Node, Residuals, Topology, parse_topology
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]


class RuleCheck(FederationCallback):
    """Checks every residual in an upload, and in the mixtures of every download, and records violations of the rules.

    Args:
        rules: The topology whose rules apply; by default that of the world.
    """

    def __init__(self, rules: Topology | None = None) -> None:
        self.rules = rules
        self.violations: list[str] = []
        self.num_used = 0

    def on_unpack(self, context: Any, sender: Any, message: Any) -> Any:
        topology, name = self.rules or context.world.topology, context.node.name
        if isinstance(message, Upload):
            for residual in message.residuals:
                self._check_shared(topology, residual.origin, name)
        elif message.num_nodes:
            rows = context.world.states[sender.name].attention
            self._check_row(topology, rows[name], sender.name, [*topology.nodes[name].walk()])
            for answer in message.residuals:
                way = topology.path(answer.origin)
                below = way[way.index(topology.nodes[name]) :]
                self._check_row(topology, rows[answer.origin], sender.name, below)
        return message

    def _check_row(self, topology: Topology, row: dict[str, float], sender: str, reached: list[Node]) -> None:
        """Check who a mixture of a federation contains residuals of, and which nodes it may reach."""
        parent = topology.parent(sender)
        known = {sender, *(child.name for child in topology.nodes[sender].children), *([parent.name] if parent else [])}
        for origin in row.keys() - known:
            self.num_used += 1
            self._check_shared(topology, origin, sender)
            jurisdiction = topology.nodes[origin].settings.jurisdiction
            for node in reached:
                accepted = node.settings.residuals.accept_from
                if accepted is not None and jurisdiction not in accepted:
                    self.violations.append(f"{origin} of {jurisdiction} is at {node.name}, which accepts {accepted}")

    def _check_shared(self, topology: Topology, origin: str, holder: str) -> None:
        ancestors = {ancestor.name for ancestor in topology.path(holder)}
        for left in (ancestor for ancestor in topology.path(origin) if ancestor.name not in ancestors):
            if not left.settings.residuals.share:
                self.violations.append(f"{origin} is at {holder}, but {left.name} does not share")


def _pieces(compress: bool = False) -> list[Any]:
    residuals = ResidualExchange(num_residuals=2)
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
    assert (lax.violations, lax.num_used > 0) == ([], True)


@pytest.mark.parametrize("what", RULES)
def test_a_new_rule_drops_queued_residuals(what: str, fit: Make, save_everywhere: Make) -> None:
    """After a round, the root knows a residual of A, and the next round would mix it for B."""
    saver, (rules, _) = save_everywhere("on_train_epoch_end"), RULES[what]
    fit(_two(), [*_pieces(), saver], limit_val_batches=0, max_epochs=1)
    for topology, is_wrong in ((_two(), True), (rules, False)):
        rule_check = RuleCheck(rules)
        fit(topology, [*_pieces(), rule_check], resume=saver.saved[-1], limit_val_batches=0, max_epochs=2)
        assert (rule_check.violations != []) == is_wrong
