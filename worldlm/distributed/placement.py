"""Places the nodes of a world on the processes that share it."""

from collections.abc import Mapping

from worldlm.topology import Node, Topology


def place(topology: Topology, costs: Mapping[str, float], num_places: int) -> dict[str, int]:
    """Distribute the nodes of a world over places (processes or teams) that work in parallel.

    Nodes that train are placed one after the other, the costliest first, each on the place with the least work so far.
    The slowest place then takes at most 4/3 of the best possible time (longest processing time first: Graham, SIAM J.
    Appl. Math. 17, 1969). A federation that does not train is placed where most of the work below it is done: its last
    upload comes from there, and the fewest bytes cross processes.

    Args:
        topology: The world.
        costs: Cost of a node's fits in one round, by name and in any unit; a node that is missing does not train.
        num_places: Number of places, at least 1.

    Returns:
        The place of every node, from 0; the root's is 0. A place may stay empty.
    """
    assert num_places >= 1
    loads = [0.0] * num_places
    places: dict[str, int] = {}
    trains = [name for name in topology.nodes if costs.get(name, 0) > 0]
    for name in sorted(trains, key=lambda name: -costs[name]):  # stable: equal costs keep the order of the tree
        places[name] = loads.index(min(loads))
        loads[places[name]] += costs[name]
    _place_others(topology.root, costs, places, num_places)
    first = places[topology.root.name]
    swapped = {first: 0, 0: first}
    return {name: swapped.get(places[name], places[name]) for name in topology.nodes}


def _place_others(node: Node, costs: Mapping[str, float], places: dict[str, int], num_places: int) -> list[float]:
    """Place the nodes that do not train, at and below a node.

    Returns:
        The work at and below the node, by place.
    """
    loads = [0.0] * num_places
    for child in node.children:
        loads = [a + b for a, b in zip(loads, _place_others(child, costs, places, num_places), strict=True)]
    place_of_node = places.setdefault(node.name, loads.index(max(loads)))
    loads[place_of_node] += costs.get(node.name, 0)
    return loads
