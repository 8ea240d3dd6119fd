"""Which process holds which node, where several share a world."""

from collections.abc import Mapping

from worldlm.topology import Node, Topology


def place(topology: Topology, costs: Mapping[str, float], num_places: int) -> dict[str, int]:
    """Share the nodes of a world out over places that work side by side.

    Those that train go one after another, the costliest first, to the place that has least to do so far (longest
    processing time first: Graham, SIAM J. Appl. Math. 17, 1969), at most 4/3 of the best possible. A federation that
    does not train itself goes where most of the work below it is done: there its last upload comes from, and least has
    to travel.

    Args:
        topology: The world.
        costs: What a node's fits of one round cost, in any unit; a node that is missing trains nothing.
        num_places: Number of places, at least 1.

    Returns:
        The place of every node, from 0; the root's is 0. A place may stay empty.
    """
    assert num_places >= 1
    loads = [0.0] * num_places
    places: dict[str, int] = {}
    trains = [name for name in topology.nodes if costs.get(name, 0) > 0]
    for name in sorted(trains, key=lambda name: -costs[name]):  # stable: those that cost alike in the tree's order
        places[name] = loads.index(min(loads))
        loads[places[name]] += costs[name]
    _settle(topology.root, costs, places, num_places)
    first = places[topology.root.name]
    swapped = {first: 0, 0: first}
    return {name: swapped.get(places[name], places[name]) for name in topology.nodes}


def _settle(node: Node, costs: Mapping[str, float], places: dict[str, int], num_places: int) -> list[float]:
    """Place whoever at and below a node trains nothing.

    Returns:
        The work at and below it, by place.
    """
    loads = [0.0] * num_places
    for child in node.children:
        loads = [a + b for a, b in zip(loads, _settle(child, costs, places, num_places), strict=True)]
    own = places.setdefault(node.name, loads.index(max(loads)))
    loads[own] += costs.get(node.name, 0)
    return loads
