"""Properties of topology files: any tree survives YAML, and any text is read or rejected with lines."""

from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from worldlm.topology import Node, TopologyError, draw_tree, parse_topology

NAMES = st.sampled_from(["no", "on", "1e3", "012", "null", "a-b", "Ü", "12", "x_1", "y", ""])
NUMBERS = st.one_of(st.none(), st.booleans(), st.integers(-2, 9), st.floats(width=32), st.sampled_from(["3", "x"]))
FEW = settings(max_examples=150)


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    """A valid tree as plain values: node i hangs below an earlier node."""
    num_nodes = draw(st.integers(1, 12))
    nodes: list[dict[str, Any]] = [{"name": f"n{i}", "children": []} for i in range(num_nodes)]
    for i in range(1, num_nodes):
        nodes[draw(st.integers(0, i - 1))]["children"].append(nodes[i])
    for i, node in enumerate(nodes):
        if not node["children"] or draw(st.booleans()):
            node["corpus"] = draw(st.sampled_from(["no", "12", "1e3", "text"]))
        if i and draw(st.booleans()):
            node["weight"] = draw(st.floats(1e-9, 1e9))
        if draw(st.booleans()):
            node["settings"] = {"num_local_steps": draw(st.integers(1, 10**12))}
    return nodes[0]


def as_plain(node: Node, above: int) -> dict[str, Any]:
    """A node as it was written, given the steps that it inherits."""
    steps = node.settings.num_local_steps
    assert steps is not None
    plain: dict[str, Any] = {"name": node.name, "corpus": node.corpus, "weight": node.weight}
    plain["settings"] = None if steps == above else {"num_local_steps": steps}
    plain["children"] = [as_plain(child, steps) for child in node.children]
    return plain


def filled(node: dict[str, Any], above: int) -> dict[str, Any]:
    """The same plain values of a written node, with absent keys filled in."""
    steps = node.get("settings", {}).get("num_local_steps", above)
    plain = {key: node.get(key) for key in ("name", "corpus", "weight")}
    plain["settings"] = None if steps == above else {"num_local_steps": steps}
    plain["children"] = [filled(child, steps) for child in node["children"]]
    return plain


@FEW
@given(trees(), st.booleans())
def test_any_tree_survives_yaml(tree: dict[str, Any], flow: bool) -> None:
    document = {"name": "t", "settings": {"num_local_steps": 3}, "root": tree}
    topology = parse_topology(yaml.safe_dump(document, default_flow_style=flow, width=9999), "t.yaml")
    assert as_plain(topology.root, 3) == filled(tree, 3)
    for node in topology.nodes.values():
        assert all(topology.parent(child.name) is node for child in node.children)
    assert len(draw_tree(topology).splitlines()) == 1 + len(topology.nodes)


def read_or_reject(text: str) -> None:
    """Allow only a TopologyError, each of whose lines names a line of the file."""
    try:
        parse_topology(text, "t.yaml")
    except TopologyError as error:
        num_lines = len(text.splitlines()) + 1
        for mistake in error.mistakes:
            source, line, problem = mistake.split(":", 2)
            assert source == "t.yaml"
            assert 1 <= int(line) <= num_lines
            assert problem.strip()
            assert len(mistake.splitlines()) == 1


@FEW
@given(st.text(alphabet="ab:-[]{}&*!<>|'\"\\%#?~,\n \t0.eU\x85\u2028\ud800", max_size=60))
def test_any_text_is_read_or_rejected(text: str) -> None:
    read_or_reject(text)


@FEW
@given(st.data())
def test_any_value_is_read_or_rejected(data: st.DataObject) -> None:
    keys = [
        "name",
        "corpus",
        "weight",
        "settings",
        "children",
        "num_local_steps",
        "privacy",
        "link",
    ]
    keys += ["example_privacy", "clip_norm", "noise_multiplier", "max_epsilon", "bandwidth_mbps"]
    keys += [
        "outer_optimizer",
        "residuals",
        "accept_from",
        "share",
        "participation",
        "jurisdiction",
    ]
    values = st.recursive(
        NUMBERS | NAMES,
        lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(keys), below, max_size=5),
        max_leaves=20,
    )
    root = data.draw(st.dictionaries(st.sampled_from(keys), values, max_size=6))
    top = {"name": "t", "settings": data.draw(values), "root": {"name": "w", "corpus": "c", **root}}
    read_or_reject(yaml.safe_dump(top, allow_unicode=True))
