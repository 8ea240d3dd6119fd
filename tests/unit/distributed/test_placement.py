from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldlm.distributed.placement import place
from worldlm.topology import Node, Settings, Topology

STEPS = Settings(num_local_steps=1)


def leaf(name: str) -> Node:
    return Node(name=name, corpus=name, settings=STEPS)


def world(*children: Node) -> Topology:
    return Topology(name="t", root=Node(name="root", children=children, settings=STEPS))


def test_the_costliest_node_is_placed_first_where_the_load_is_smallest() -> None:
    topology = world(leaf("a"), leaf("b"), leaf("c"), leaf("d"), leaf("e"))
    # d: 7 -> 0; b: 5 -> 1; e: 4 -> 1 (5 < 7); a: 3 -> 0 (7 < 9); c: 2 -> 1 (9 < 10); 11 of 21 are at 1, the root too,
    # and so 1 becomes 0
    places = place(topology, {"a": 3, "b": 5, "c": 2, "d": 7, "e": 4}, 2)
    assert places == {"root": 0, "a": 1, "b": 0, "c": 0, "d": 1, "e": 0}


def test_a_federation_is_placed_where_most_of_its_work_is() -> None:
    north = Node(name="north", children=(leaf("a"), leaf("b")), settings=STEPS)
    south = Node(name="south", children=(leaf("c"), leaf("d")), settings=STEPS)
    places = place(world(north, south), {"a": 8, "b": 1, "c": 1, "d": 9}, 2)
    assert places == {"root": 0, "north": 1, "a": 1, "b": 1, "south": 0, "c": 0, "d": 0}


def test_a_place_may_stay_empty_and_listeners_cost_nothing() -> None:
    listener = Node(name="l", corpus="l", settings=Settings(num_local_steps=0))
    assert place(world(leaf("a"), listener), {"a": 1, "l": 0}, 3) == {"root": 0, "a": 0, "l": 0}


@given(costs=st.lists(st.integers(1, 50), min_size=1, max_size=12), num_places=st.integers(1, 5))
def test_the_largest_load_is_within_the_bound_of_list_scheduling(costs: list[int], num_places: int) -> None:
    named = {f"n{i}": cost for i, cost in enumerate(costs)}
    places = place(world(*map(leaf, named)), named, num_places)
    loads = [sum(named.get(name, 0) for name, at in places.items() if at == number) for number in range(num_places)]
    assert sum(loads) == sum(costs)
    assert max(loads) <= sum(costs) / num_places + max(costs) * (1 - 1 / num_places) + 1e-9


@pytest.mark.parametrize("num_places", [1, 2, 7])
def test_all_nodes_have_a_place(num_places: int) -> None:
    inner = Node(name="inner", corpus="i", children=(leaf("a"),), settings=STEPS)
    places = place(world(inner, leaf("b")), {"inner": 2.0, "a": 1.0, "b": 1.0}, num_places)
    assert set(places) == {"root", "inner", "a", "b"}
    assert all(0 <= place < num_places for place in places.values())
