"""Residuals: selection and rules."""

from dataclasses import replace

import pytest

from worldlm.federation.messages import Residual
from worldlm.federation.residuals import is_allowed_at, refusal, select_residuals, why_kept_out
from worldlm.topology import Node, Residuals, Settings, Topology


def residual(jurisdiction: str | None = "eu") -> Residual:
    return Residual(keys={}, values={}, origin="it", federation="south", jurisdiction=jurisdiction, round=0)


def child(name: str, accept_from: tuple[str, ...] | None = None) -> Node:
    settings = Settings(num_local_steps=1, residuals=Residuals(accept_from=accept_from))
    return Node(name=name, corpus="text", settings=settings)


# ---------------------------------------------------------------- select


@pytest.mark.parametrize(
    ("fits", "num_residuals", "chosen"),
    [
        ({"it": 0.2, "fr": 0.5, "uk": -0.3}, 1, ["uk"]),
        ({"it": 0.2, "fr": 0.5, "uk": 0.3}, 2, ["it", "uk"]),
        ({"it": 0.2, "fr": 0.5, "uk": 0.3}, 9, ["it", "uk", "fr"]),
        ({"uk": 0.25, "it": 0.25, "fr": 0.5}, 1, ["it"]),  # a tie goes by name
        ({}, 1, []),
    ],
)
def test_select(fits: dict[str, float], num_residuals: int, chosen: list[str]) -> None:
    assert select_residuals(fits, num_residuals) == chosen


# ---------------------------------------------------------------- governance


@pytest.mark.parametrize(
    ("accept_from", "jurisdiction", "expected"),
    [
        (None, "eu", None),
        (None, None, None),
        (("eu", "uk"), "eu", None),
        (("us",), "eu", "fr accepts residuals from us only, not from eu"),
        (("us", "uk"), "eu", "fr accepts residuals from us, uk only, not from eu"),
        (("us",), None, "fr accepts residuals from us only, not from a node without a jurisdiction"),
        ((), "eu", "fr accepts no residuals"),
    ],
)
def test_refusal(accept_from, jurisdiction, expected) -> None:
    assert refusal(residual(jurisdiction=jurisdiction), child("fr", accept_from)) == expected


def test_all_receivers_must_accept() -> None:
    receivers = [child("a"), child("b", ("eu",)), child("c", ("us",)), child("d", ())]
    assert why_kept_out(residual(), receivers[:2]) is None
    assert why_kept_out(residual(), receivers) == "c accepts residuals from us only, not from eu"


# ---------------------------------------------------------------- rules that change in transit


def two(**rules: Residuals) -> Topology:
    """A world of a federation `south` with the leaf `it`, and a federation `north` with the leaf `uk`, all of `eu`."""

    def node(name: str, *children: Node) -> Node:
        settings = Settings(num_local_steps=1, residuals=rules.get(name, Residuals()), jurisdiction="eu")
        return Node(name=name, corpus=None if children else "text", settings=settings, children=children)

    tree = node("world", node("south", node("it"), node("fr")), node("north", node("uk")))
    return Topology(name="two", root=tree)


KEEP = Residuals(share=False)
NOBODY, ABROAD = Residuals(accept_from=()), Residuals(accept_from=("us",))


@pytest.mark.parametrize(
    ("rules", "allowed"),
    [
        ({}, ["world", "south", "it", "fr", "north", "uk"]),
        ({"it": KEEP}, ["it"]),
        ({"south": KEEP}, ["south", "it", "fr"]),
        ({"world": KEEP, "north": KEEP, "uk": KEEP}, ["world", "south", "it", "fr", "north", "uk"]),  # it left none
        ({"north": NOBODY}, ["world", "south", "it", "fr", "uk"]),
        ({"uk": ABROAD, "fr": NOBODY}, ["world", "south", "it", "north"]),
        ({"world": NOBODY, "south": NOBODY, "it": NOBODY}, ["world", "south", "it", "fr", "north", "uk"]),  # from below
    ],
)
def test_rules_of_a_changed_topology(rules, allowed) -> None:
    tree = two(**rules)
    assert [name for name, node in tree.nodes.items() if is_allowed_at(residual(), node, tree)] == allowed


def test_a_residual_of_a_removed_node_is_not_allowed() -> None:
    tree, gone = two(), replace(residual(), origin="es")
    assert not any(is_allowed_at(gone, node, tree) for node in tree.nodes.values())


def test_the_former_and_the_current_jurisdiction_apply() -> None:
    for law, expected in (("eu", True), ("us", False), (None, False)):
        tree = two(uk=Residuals(accept_from=("eu",)))
        assert is_allowed_at(residual(jurisdiction=law), tree.nodes["uk"], tree) == expected
    tree = two(uk=ABROAD)
    assert not is_allowed_at(residual(jurisdiction="us"), tree.nodes["uk"], tree)  # it is of eu by now
