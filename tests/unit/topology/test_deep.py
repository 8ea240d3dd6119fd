"""Trees of many levels: the limit counts nodes on a path, not levels of YAML."""

import pytest

from worldlm.topology import Node, Settings, Topology, TopologyError, draw_mermaid, draw_tree, parse_topology
from worldlm.topology.tree import MAX_LEVELS

STEPS = Settings(num_local_steps=1)
LEAF_SETTINGS = "settings: {residuals: {share: true, accept_from: [eu]}, jurisdiction: eu}"


def block_chain(num_levels: int) -> str:
    """A chain with one node per level, in block style, whose leaf has settings of its own."""
    lines, indent = ["name: chain", "settings: {num_local_steps: 1}", "root:", "  name: n1"], "  "
    for i in range(2, num_levels + 1):
        lines += [f"{indent}children:", f"{indent}  - name: n{i}"]
        indent += "    "
    return "\n".join([*lines, f"{indent}corpus: text", f"{indent}{LEAF_SETTINGS}", ""])


def flow_chain(num_levels: int) -> str:
    """The same chain on one line."""
    tree = f"{{name: n{num_levels}, corpus: text, {LEAF_SETTINGS}}}"
    for i in range(num_levels - 1, 0, -1):
        tree = f"{{name: n{i}, children: [{tree}]}}"
    return f"name: chain\nsettings: {{num_local_steps: 1}}\nroot: {tree}\n"


@pytest.mark.parametrize("text", [block_chain(MAX_LEVELS), flow_chain(MAX_LEVELS)])
def test_a_chain_at_the_limit_is_read_and_drawn(text: str) -> None:
    topology = parse_topology(text, "chain.yaml")
    assert topology.depth == len(topology.nodes) == MAX_LEVELS == 64
    assert [node.name for node in topology.path("n64")] == [f"n{i}" for i in range(1, 65)]
    assert len(draw_tree(topology).splitlines()) == 65
    assert draw_mermaid(topology).count("subgraph") == 63


@pytest.mark.parametrize(
    ("num_levels", "message"),
    [
        (65, "chain.yaml:132: a child of 'n64' is at level 65 of the tree; 64 are allowed"),
        (
            300,
            "chain.yaml:146: is nested deeper than the 144 levels allowed, "
            "which are enough for a tree of 64 levels of nodes",
        ),
    ],
)
def test_a_deeper_chain_is_rejected_with_the_limit(num_levels: int, message: str) -> None:
    with pytest.raises(TopologyError) as error:
        parse_topology(block_chain(num_levels), "chain.yaml")
    assert error.value.mistakes == (message,)


def test_a_value_has_a_limit_too() -> None:
    text = f"name: t\nsettings: {{outer_optimizer: {{name: SGD, lr: {'[' * 150}1{']' * 150}}}}}\n"
    with pytest.raises(TopologyError, match="t.yaml:2: is nested deeper than the 144 levels"):
        parse_topology(text, "t.yaml")


def test_a_tree_built_in_python_has_the_same_limit() -> None:
    node = Node(name="n64", corpus="text", settings=STEPS)
    for i in range(63, 0, -1):
        node = Node(name=f"n{i}", settings=STEPS, children=(node,))
    assert Topology(name="chain", root=node).depth == 64
    with pytest.raises(ValueError, match="root has 65 levels of nodes; 64 are allowed"):
        Topology(name="chain", root=Node(name="n0", settings=STEPS, children=(node,)))


def test_a_very_deep_tree_is_rejected_without_using_up_the_stack() -> None:
    node = Node(name="leaf", corpus="text", settings=STEPS)
    for i in range(5_000):
        node = Node(name=f"n{i}", settings=STEPS, children=(node,))
    with pytest.raises(ValueError, match="root has 5001 levels"):
        Topology(name="chain", root=node)


def test_listeners_are_counted_once_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each node asks its children alone: a chain of listeners took a time that grew with the square of its length."""
    calls, fits = [], Node.fits.fget
    monkeypatch.setattr(Node, "fits", property(lambda node: calls.append(node.name) or fits(node)))
    node = Node(name="leaf", corpus="text", settings=Settings(num_local_steps=0))
    for i in range(50):
        node = Node(name=f"n{i}", settings=STEPS, children=(node,))
    assert node.listens
    assert len(calls) <= 3 * 51
