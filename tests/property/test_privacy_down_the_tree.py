"""A demand for privacy is never loosened below, and not over time without a word, whatever the settings."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from worldlm.topology import (
    Node,
    Privacy,
    PrivacyOfExamples,
    Residuals,
    Settings,
    Topology,
    TopologyError,
    parse_topology,
    reshape,
)
from worldlm.topology.changes import compare, described
from worldlm.topology.settings import KINDS_OF_PRIVACY, UNITS
from worldlm.topology.shape import gone_as_one, split_rounds

FEW = settings(max_examples=100)
MANY = settings(max_examples=5000)

VALUES = {
    "clip_norm": [0.5, 1.0, 2.0],
    "noise_multiplier": [0.0, 1.0, 2.0],
    "delta": [1e-6, 1e-5, 1e-4],
    "max_epsilon": [None, 4.0, 8.0],
}
WRITTEN = st.none() | st.fixed_dictionaries({}, optional={key: st.sampled_from(one) for key, one in VALUES.items()})
OWN = st.fixed_dictionaries({}, optional=dict.fromkeys(KINDS_OF_PRIVACY, WRITTEN))


def looser(above: Any, below: Any) -> set[str]:
    """Name the components in which one demand, a Privacy or None, is less strict than another: a second opinion."""
    if above is None:
        return set()
    if below is None:
        return {*VALUES, *(["unit"] if hasattr(above, "unit") else [])}
    found = set()
    if below.clip_norm > above.clip_norm:
        found.add("clip_norm")
    if below.noise_multiplier < above.noise_multiplier:
        found.add("noise_multiplier")
    if below.delta > above.delta:
        found.add("delta")
    if above.max_epsilon is not None and (below.max_epsilon is None or below.max_epsilon > above.max_epsilon):
        found.add("max_epsilon")
    if getattr(above, "unit", None) is not None and UNITS.index(below.unit) < UNITS.index(above.unit):
        found.add("unit")
    return found


# ---------------------------------------------------------------------- files


@st.composite
def files(draw: st.DrawFn) -> dict[str, Any]:
    """A topology as plain values: node i hangs below an earlier node, each with any demands at all."""
    num_nodes = draw(st.integers(2, 7))
    nodes: list[dict[str, Any]] = [{"name": f"n{i}", "settings": draw(OWN), "children": []} for i in range(num_nodes)]
    for i in range(1, num_nodes):
        nodes[draw(st.integers(0, i - 1))]["children"].append(nodes[i])
    for node in nodes:
        if not node["children"]:
            node["corpus"] = node["name"]
    return {"name": "t", "settings": {"num_local_steps": 64, **draw(OWN)}, "root": nodes[0]}


def is_sound(own: dict[str, Any], above: dict[str, Any], below: list[dict[str, Any]]) -> bool:
    """Whether these settings, and those of all nodes below, ask for no less than the ones above them."""
    here = dict(above)
    for kind, written in own.items():
        if kind not in KINDS_OF_PRIVACY:
            continue
        if written is None:
            if above[kind] is not None:
                return False
            continue
        inherited = {} if above[kind] is None else {key: getattr(above[kind], key) for key in VALUES}
        try:
            here[kind] = Privacy(**{**inherited, **written})
        except (TypeError, ValueError):  # without clip_norm, or a budget that no noise keeps
            return False
        if looser(above[kind], here[kind]):
            return False
    return all(is_sound(child["settings"], here, child["children"]) for child in below)


def check_file(whole: dict[str, Any], overrides: dict[str, Any]) -> None:
    nothing = dict.fromkeys(KINDS_OF_PRIVACY, None)
    root = {"settings": whole["root"]["settings"], "children": whole["root"]["children"]}
    expected = is_sound(whole["settings"], nothing, [{"settings": overrides, "children": [root]}])
    text = yaml.safe_dump(whole, sort_keys=False)
    try:
        topology = parse_topology(text, "t.yaml", overrides)
    except TopologyError as error:
        assert not expected
        for mistake in error.mistakes:
            source, told = mistake.split(":", 1)
            place = yaml.safe_dump(overrides)
            if source == "t.yaml":
                line, told = told.split(":", 1)
                place = text.splitlines()[int(line) - 1]
            assert any(word in place for word in told.split()[0].split("."))  # or that of its kind
        return
    assert expected
    for node in topology.nodes.values():
        for child in node.children:
            for kind in KINDS_OF_PRIVACY:
                assert looser(getattr(node.settings, kind), getattr(child.settings, kind)) == set()
    check_shapes(topology)


def check_shapes(tree: Topology) -> None:
    """No shape takes privacy from a node, and what held for several as one does not go without a word."""
    private = {node.name for node in tree.data_nodes if node.settings.is_private}
    star = reshape(tree, "star")
    for shaped in (star, split_rounds(tree, 2) if any(child.children for child in tree.root.children) else tree):
        for name, node in shaped.nodes.items():
            for kind in KINDS_OF_PRIVACY:
                assert getattr(node.settings, kind) == getattr(tree.nodes[name].settings, kind)
    lost = {name for name, node in tree.nodes.items() if name not in star.nodes and node.settings.privacy}
    assert set(gone_as_one(tree, star)) == lost
    if private:
        for shape in ("single", "single_all_tokens"):
            with pytest.raises(ValueError, match="these nodes are private"):
                reshape(tree, shape)


@settings(max_examples=25)  # of up to seven nodes, each of which is written and read
@given(files(), st.just({}) | OWN)
def test_a_child_is_never_looser_or_its_file_is_refused(whole: dict[str, Any], overrides: dict[str, Any]) -> None:
    check_file(whole, overrides)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@MANY
@given(files(), st.just({}) | OWN)
def test_a_child_is_never_looser_in_many_files(whole: dict[str, Any], overrides: dict[str, Any]) -> None:
    check_file(whole, overrides)


# ---------------------------------------------------------------------- trees that are built by hand

_FIELDS: dict[str, Any] = {
    "clip_norm": st.sampled_from([0.5, 1.0]),
    "noise_multiplier": st.sampled_from([1.0, 2.0]),
    "delta": st.sampled_from([1e-6, 1e-5]),
    "max_epsilon": st.sampled_from([None, 4.0, 8.0]),
}
DEMANDS = {
    "privacy": st.none() | st.builds(Privacy, **_FIELDS),
    "example_privacy": st.none() | st.builds(PrivacyOfExamples, **_FIELDS, unit=st.sampled_from(UNITS)),
}


@FEW
@given(st.data(), st.sampled_from(KINDS_OF_PRIVACY))
def test_a_tree_built_by_hand_is_refused_where_a_child_is_looser(data: st.DataObject, kind: str) -> None:
    demands: list[Privacy | None] = data.draw(st.lists(DEMANDS[kind], min_size=2, max_size=4))
    node = None
    for i, demand in reversed([*enumerate(demands)]):
        own = Settings(num_local_steps=1, **{kind: demand})
        below = () if node is None else (node,)
        node = Node(name=f"n{i}", corpus=None if below else "text", settings=own, children=below)
    assert node is not None
    expected = [f"n{i + 1}" for i, (one, two) in enumerate(pairwise(demands)) if looser(one, two)]
    if not expected:
        Topology(name="t", root=node)
        return
    with pytest.raises(ValueError, match=f"must not loosen privacy: {kind}") as refused:
        Topology(name="t", root=node)
    assert all(repr(name) in str(refused.value) for name in expected)


# ---------------------------------------------------------------------- over time


@st.composite
def settled(draw: st.DrawFn) -> Topology:
    """A tree over some of six names, without inheritance: each of two levels asks for what it likes."""
    names = draw(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=6, unique=True))

    def leaf(name: str) -> Node:
        rules = Residuals(
            share=draw(st.booleans()), accept_from=draw(st.sampled_from([None, (), ("eu",), ("eu", "us")]))
        )
        own = Settings(num_local_steps=1, residuals=rules, **{kind: draw(DEMANDS[kind]) for kind in DEMANDS})
        return Node(name=name, corpus=draw(st.sampled_from("xyz")), settings=own)

    root = Node(name="world", settings=Settings(num_local_steps=1), children=tuple(map(leaf, names)))
    return Topology(name="t", root=root)


def _weaker(old: Topology, new: Topology) -> Iterator[tuple[str, str]]:
    for name in old.nodes.keys() & new.nodes.keys():
        one, two = old.nodes[name].settings, new.nodes[name].settings
        for kind in KINDS_OF_PRIVACY:
            before, after = getattr(one, kind), getattr(two, kind)
            changed = {key for key in (*VALUES, "unit") if getattr(before, key, None) != getattr(after, key, None)}
            yield from ((name, f"{kind}.{key}") for key in looser(before, after) & changed)
        if two.residuals.share and not one.residuals.share:
            yield name, "residuals.share"
        accepted, now = one.residuals.accept_from, two.residuals.accept_from
        if accepted is not None and (now is None or any(law not in accepted for law in now)):
            yield name, "residuals.accept_from"


def check_time(old: Topology, new: Topology) -> None:
    changes = compare(described(old), described(new))
    told = [*changes.loosened.items(), *changes.opened.items()]
    found = {(name, key) for name, each in told for key, _, _ in each}
    assert found == set(_weaker(old, new))
    warned = "\n".join(changes.warnings())
    assert all(f"{key} " in warned and name in warned for name, key in found)
    for name, node in new.nodes.items():
        read = old.nodes[name].corpus if name in old.nodes else None
        if node.corpus is None or node.corpus == read:
            continue
        readers = [one for one in old.data_nodes if one.corpus == node.corpus]
        bare = [
            k
            for k in KINDS_OF_PRIVACY
            if not getattr(node.settings, k) and any(getattr(r.settings, k) for r in readers)
        ]
        assert (name in changes.bared) == bool(bare)
        assert not bare or f"reads {node.corpus} without {changes.bared[name][1]}" in warned


@FEW
@given(settled(), settled())
def test_nothing_is_loosened_over_time_without_a_word(old: Topology, new: Topology) -> None:
    check_time(old, new)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@MANY
@given(settled(), settled())
def test_nothing_is_loosened_over_time_in_many_worlds(old: Topology, new: Topology) -> None:
    check_time(old, new)
