"""Residuals: selection, routing and rules."""

from dataclasses import replace

import pytest
import torch

from worldlm.federation.messages import Residual
from worldlm.federation.residuals import Route, is_allowed_at, refusal, route, select_residuals
from worldlm.topology import Node, Residuals, Settings, Topology

REFERENCE = {"k": torch.tensor([1.0, 1.0])}


def keys(x: float, y: float) -> dict[str, torch.Tensor]:
    """Keys that changed by (x, y) since the reference."""
    return {"k": torch.tensor([1.0 + x, 1.0 + y])}


def residual(x: float = 1.0, y: float = 0.0, jurisdiction: str | None = "eu") -> Residual:
    return Residual(keys=keys(x, y), values={}, origin="it", federation="south", jurisdiction=jurisdiction, round=0)


def child(name: str, accept_from: tuple[str, ...] | None = None) -> Node:
    settings = Settings(num_local_steps=1, residuals=Residuals(accept_from=accept_from))
    return Node(name=name, corpus="text", settings=settings)


def send(where: dict[str, dict], *, min_fit: float = 0.0, accept=None, **options) -> Route:
    """Route a residual that changed by (1, 0) among children that last uploaded these keys."""
    children = {name: child(name, (accept or {}).get(name)) for name in where}
    uploaded_keys = {name: child_keys for name, child_keys in where.items() if child_keys is not None}
    return route(residual(), children, uploaded_keys, REFERENCE, min_fit=min_fit, **options)


# ---------------------------------------------------------------- select


@pytest.mark.parametrize(
    ("weights", "num_residuals", "chosen"),
    [
        ({"it": 0.2, "fr": 0.5, "uk": 0.3}, 1, ["it"]),
        ({"it": 0.2, "fr": 0.5, "uk": 0.3}, 2, ["it", "uk"]),
        ({"it": 0.2, "fr": 0.5, "uk": 0.3}, 9, ["it", "uk", "fr"]),
        ({"it": 0.2, "fr": 0.5, "uk": 0.3}, 0, []),
        ({"uk": 0.25, "it": 0.25, "fr": 0.5}, 1, ["it"]),  # a tie goes by name
        ({"uk": 0.25, "it": 0.25, "fr": 0.25}, 2, ["fr", "it"]),
        ({"it": 1.0}, 1, []),
        ({}, 1, []),
    ],
)
def test_select(weights, num_residuals, chosen) -> None:
    assert select_residuals(weights, weights.keys(), num_residuals) == chosen


def test_the_nodes_own_fit_is_a_participant_but_never_a_residual() -> None:
    assert select_residuals({"parent": 0.1, "it": 0.9}, ["it"], 1) == ["it"]


# ---------------------------------------------------------------- route


def test_goes_to_the_child_it_fits_best() -> None:
    result = send({"a": keys(0.0, 1.0), "b": keys(1.0, 1.0), "c": keys(3.0, 4.0)})
    assert result.home == "b"
    assert result.fits == pytest.approx({"a": 0.0, "b": 0.5**0.5, "c": 0.6})


def test_cosine_ignores_the_norm_of_the_change() -> None:
    where = {"a": keys(100.0, 100.0), "b": keys(0.1, 0.01)}
    assert send(where).home == "b"
    assert send(where, similarity="dot").home == "a"


@pytest.mark.parametrize(("min_fit", "home"), [(0.0, "a"), (0.59, "a"), (0.61, None), (1.0, None)])
def test_the_best_fit_must_be_above_the_minimum(min_fit, home) -> None:
    result = send({"a": keys(3.0, 4.0), "b": keys(-1.0, 0.0)}, min_fit=min_fit)
    assert result.home == home
    assert result.fits == pytest.approx({"a": 0.6, "b": -1.0})


def test_a_fit_equal_to_the_minimum_is_not_enough() -> None:
    assert send({"a": keys(0.0, 1.0)}, min_fit=0.0).home is None
    assert send({"a": keys(0.0, 1.0)}, min_fit=-0.1).home == "a"


def test_a_tie_goes_to_the_first_in_the_alphabet() -> None:
    assert send({"b": keys(1.0, 0.0), "a": keys(1.0, 0.0), "c": keys(1.0, 0.0)}).home == "a"


def test_a_child_without_an_upload_is_skipped() -> None:
    result = send({"a": None, "b": keys(1.0, 1.0)}, accept={"a": ()})
    assert (result.home, list(result.fits), result.refusals) == ("b", ["b"], ())


def test_keys_of_other_nodes_are_ignored() -> None:
    uploaded_keys = {"a": keys(1.0, 1.0), "home": keys(1.0, 0.0)}
    result = route(residual(), {"a": child("a")}, uploaded_keys, REFERENCE, min_fit=0.0)
    assert (result.home, list(result.fits)) == ("a", ["a"])


def test_a_child_without_change_does_not_match() -> None:
    assert send({"a": keys(0.0, 0.0)}).home is None


@pytest.mark.parametrize("where", [{}, {"a": None}])
def test_no_candidates(where) -> None:
    assert send(where) == Route(None, {}, ())


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


def test_a_child_that_rejects_is_skipped_and_reported() -> None:
    result = send({"a": keys(1.0, 0.0), "b": keys(1.0, 1.0), "c": keys(0.0, 1.0)}, accept={"a": ("us",), "c": ()})
    assert result.home == "b"
    assert list(result.fits) == ["b"]
    assert result.refusals == (
        "a accepts residuals from us only, not from eu",
        "c accepts no residuals",
    )


def test_a_residual_that_all_reject_has_no_destination() -> None:
    result = send({"a": keys(1.0, 0.0)}, accept={"a": ("us",)})
    assert (result.home, result.fits, len(result.refusals)) == (None, {}, 1)


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
