"""The noise of private uploads beside their updates, by hand."""

from __future__ import annotations

import pytest

from worldlm.topology import Topology, parse_topology
from worldlm.topology.upload_noise import find_noisy_uploads, noise_warnings


def world(*children: str, settings: str = "") -> Topology:
    listed = "".join(f"    - {child}\n" for child in children)
    return parse_topology(
        f"name: t\nsettings: {{num_local_steps: 1}}\nroot:\n  name: w\n  settings: {{{settings}}}\n"
        f"  children:\n{listed}",
        "t",
    )


def node(name: str, noise: float | None = None, more: str = "") -> str:
    privacy = "" if noise is None else f"privacy: {{clip_norm: 0.5, noise_multiplier: {noise}}}"
    return f"{{name: {name}, corpus: {name}, settings: {{{privacy}{more}}}}}"


def test_one_private_node_by_hand() -> None:
    """A noise of 2 in each of 100 coordinates: ratio 2 * 10, share 1 / (1 + 4 * 100), and 400 participants."""
    (noisy,) = find_noisy_uploads(world(node("a", 2.0), node("b"), node("c")), 100)
    assert (noisy.nodes, noisy.noise_multiplier, noisy.num_peers) == (("a",), 2.0, 1.0)
    assert (noisy.ratio, noisy.num_needed) == (20.0, 400.0)
    assert noisy.share == pytest.approx(1 / 401)


def test_nodes_with_the_same_noise_are_one_group_and_more_noise_comes_first() -> None:
    found = find_noisy_uploads(world(node("a", 1.0), node("b", 3.0), node("c", 1.0)), 100)
    assert [(noisy.nodes, noisy.num_peers) for noisy in found] == [(("b",), 3.0), (("a", "c"), 2.0)]


@pytest.mark.parametrize(("num_sent", "is_noisy"), [(4, False), (5, True)])
def test_enough_peers_balance_the_noise(num_sent: int, is_noisy: bool) -> None:
    """The mean of four has the noise sqrt(d / 4), which is 1 for d = 4."""
    tree = world(*(node(f"n{i}", 1.0) for i in range(4)), node("open"))
    assert bool(find_noisy_uploads(tree, num_sent)) is is_noisy


def test_participants_with_less_noise_are_peers_and_those_with_more_are_not() -> None:
    """With d = 4, a noise of 0.5 is balanced by itself alone, and one of 1 would need four participants."""
    tree = world(node("a", 0.5), node("b", 1.0), node("c", 2.0))
    assert [(noisy.nodes, noisy.num_peers) for noisy in find_noisy_uploads(tree, 4)] == [(("c",), 3.0), (("b",), 2.0)]


def test_half_of_the_participants_balance_half_as_much() -> None:
    nodes = [node(f"n{i}", 1.0) for i in range(4)]
    (noisy,) = find_noisy_uploads(world(*nodes, settings="participation: 0.5"), 3)
    assert noisy.num_peers == 2.0
    assert not find_noisy_uploads(world(*nodes, settings="participation: 0.5"), 2)


def test_a_private_federation_counts_beside_its_siblings_and_its_members_within_it() -> None:
    members = f"[{node('a')}, {node('b')}]"
    privacy = "privacy: {clip_norm: 1, noise_multiplier: 1}"
    tree = world(f"{{name: f, settings: {{{privacy}}}, children: {members}}}", node("x"))
    (noisy,) = find_noisy_uploads(tree, 100)
    assert (noisy.nodes, noisy.num_peers) == (("f", "a", "b"), 2.0)
    (noisy,) = find_noisy_uploads(tree, 2)
    assert (noisy.nodes, noisy.num_peers) == (("f",), 1.0)


@pytest.mark.parametrize(
    "children",
    [
        [node("a"), node("b")],
        [node("a", 0.0), node("b")],
        [node("ear", 1.0, ", num_local_steps: 0"), node("b")],
        ["{name: a, corpus: c, settings: {example_privacy: {clip_norm: 1, noise_multiplier: 1}}}"],
    ],
    ids=["open", "only clipped", "listener", "examples"],
)
def test_what_sends_no_noise_has_none(children: list[str]) -> None:
    assert not find_noisy_uploads(world(*children), 10**9)


def test_a_method_that_shares_nothing_has_no_noise() -> None:
    assert list(noise_warnings(world(node("a", 1.0)), 0)) == []


def test_the_root_uploads_to_nobody() -> None:
    """Only the child sends noise, although the root has the same setting."""
    (noisy,) = find_noisy_uploads(world(node("a"), settings="privacy: {clip_norm: 1, noise_multiplier: 1}"), 100)
    assert noisy.nodes == ("a",)


def test_the_lines_of_a_known_model() -> None:
    lines = list(noise_warnings(world(node("hospital", 1.0), node("clinic")), 820_480))
    assert lines == [
        "the privacy noise of hospital is at least 906 times as large as the update: noise_multiplier 1, "
        "820,480 shared parameters",
        "  averaging and attention count each upload as 1/820,000 of one without noise; about 820,000 such "
        "participants in one federation would balance the noise, and here are at most 1",
        "  what helps: more private participants in a federation, fewer shared parameters, or a smaller "
        "noise_multiplier (fewer rounds then keep epsilon low); a larger clip_norm only adds noise",
    ]


def test_a_million_parameters_stand_for_an_unknown_model() -> None:
    first, second, _, last = noise_warnings(world(node("a", 0.003), node("b")))
    assert first.endswith("at least 3 times as large as the update: noise_multiplier 0.003, such as 1,000,000 shared "
                          "parameters")  # fmt: skip
    assert "count each upload as 10 % of one without noise; about 9 such participants" in second
    assert "`worldlm topology estimate RECIPE`" in last


def test_many_levels_of_noise_stay_a_few_lines() -> None:
    nodes = [node(f"n{i}", 1.0 + i // 6) for i in range(60)]
    first, *lines = noise_warnings(world(*nodes), 10**6)
    assert len(lines) == 7
    assert first.startswith("the privacy noise of n54, n55, n56, n57 and 2 more is at least 10,000 times")
    assert lines[-2] == "the privacy noise of n36, n37, n38, n39 and 38 more is larger than the update too"


def test_clipping_alone_is_no_guarantee() -> None:
    examples = "{name: b, corpus: b, settings: {example_privacy: {clip_norm: 1}}}"
    assert list(noise_warnings(world(node("a", 0.0), examples, node("c")))) == [
        "privacy of a guarantees nothing: its noise_multiplier is 0, which only clips",
        "example_privacy of b guarantees nothing: its noise_multiplier is 0, which only clips",
    ]
