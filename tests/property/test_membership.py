"""Properties of the changes between any two trees."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldlm.federation.membership import carry_over
from worldlm.federation.state import NodeState
from worldlm.topology import Node, Settings, Topology
from worldlm.topology.changes import Changes, compare, described

FEW = settings(max_examples=60)


@st.composite
def trees(draw: st.DrawFn) -> Topology:
    """A tree over some of ten names; node i hangs below an earlier node."""
    names = draw(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=10, unique=True))
    below: dict[str, list[str]] = {name: [] for name in names}
    for i, name in enumerate(names[1:], 1):
        below[names[draw(st.integers(0, i - 1))]].append(name)

    def build(name: str) -> Node:
        corpus = draw(st.sampled_from("xy")) if not below[name] or draw(st.booleans()) else None
        node_settings = Settings(num_local_steps=draw(st.integers(1, 3)), dropout=draw(st.sampled_from([0.0, 0.5])))
        return Node(name=name, corpus=corpus, settings=node_settings, children=tuple(map(build, below[name])))

    return Topology(name="t", root=build(names[0]))


def plan(old: Topology, new: Topology) -> Changes:
    return compare(described(old), described(new))


def parents(topology: Topology) -> dict[str, str | None]:
    return {child.name: node.name for node in topology.nodes.values() for child in node.children} | {
        topology.root.name: None
    }


@FEW
@given(trees(), trees())
def test_every_node_joined_left_or_stayed(old: Topology, new: Topology) -> None:
    changes = plan(old, new)
    assert changes.joined.keys() == new.nodes.keys() - old.nodes.keys()
    assert changes.left.keys() == old.nodes.keys() - new.nodes.keys()
    before, after = parents(old), parents(new)
    stayed = old.nodes.keys() & new.nodes.keys()
    assert changes.moved == {name: (before[name], after[name]) for name in stayed if before[name] != after[name]}
    assert changes.settings.keys() <= stayed
    assert set(changes.parted) == {
        (name, parent)
        for name, parent in before.items()
        if parent in new.nodes and after.get(name) != parent
    }  # fmt: skip


@FEW
@given(trees(), trees())
def test_a_new_node_starts_from_its_nearest_old_ancestor(old: Topology, new: Topology) -> None:
    above = parents(new)
    for name, source in plan(old, new).joined.items():
        nearest: str | None = name
        while nearest is not None and nearest not in old.nodes:
            nearest = above[nearest]
        assert source == (nearest or old.root.name)


@FEW
@given(trees(), trees())
def test_the_reverse_changes_swap_old_and_new(old: Topology, new: Topology) -> None:
    forward, back = plan(old, new), plan(new, old)
    assert not plan(old, old)
    assert set(forward.joined) == set(back.left)
    assert forward.moved == {name: (after, before) for name, (before, after) in back.moved.items()}
    swapped = {
        name: {(key, after, before) for key, before, after in changed} for name, changed in back.settings.items()
    }
    assert {name: set(changed) for name, changed in forward.settings.items()} == swapped
    assert bool(forward) == bool(back) == bool([*forward.lines()])


@FEW
@given(trees(), trees())
def test_states_are_carried_over(old: Topology, new: Topology) -> None:
    states = {}
    for i, (name, node) in enumerate(old.nodes.items()):
        states[name] = NodeState(
            parameters={"w": torch.tensor([float(i)])},
            num_steps=i + 1,
            num_batches=i + 1,
            unsent_tokens=1,
            attention={child.name: {child.name: 1.0} for child in node.children},
            participants=tuple(child.name for child in node.children),
            memory={"piece": {"history": [i]}},
        )
    changes, steps = plan(old, new), {name: state.num_steps for name, state in states.items()}
    carried = carry_over(states, changes, new)
    assert [*carried] == [*new.nodes]
    for name, state in carried.items():
        children = {child.name for child in new.nodes[name].children}
        assert set(state.participants) == set(state.attention) <= children
        if name in changes.joined:
            source: Any = states[changes.joined[name]]
            assert torch.equal(state.parameters["w"], source.parameters["w"])
            assert state.parameters["w"].data_ptr() != source.parameters["w"].data_ptr()
            assert (state.num_steps, state.unsent_tokens, state.memory) == (0, 0, {})
        else:
            assert state is states[name]
            assert state.num_steps == steps[name]
            assert state.unsent_tokens == (name not in changes.moved)
            assert state.num_batches == (0 if name in changes.new_texts else steps[name])
    assert carried[new.root.name].takes_part
