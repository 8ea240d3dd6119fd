"""Topology files: values, inheritance, and mistakes with their lines."""

from pathlib import Path
from textwrap import dedent

import pytest

from worldlm.topology import (
    OuterOptimizer,
    Privacy,
    Topology,
    TopologyError,
    load_topology,
    parse_topology,
)

SHIPPED = sorted((Path(__file__).parents[3] / "topologies").glob("*.yaml"))
SMALL = [path for path in SHIPPED if path.stem != "hundred_thousand"]  # which test_copies.py loads


def parse(text: str) -> Topology:
    return parse_topology(dedent(text), "t.yaml")


def mistakes(text: str) -> list[str]:
    with pytest.raises(TopologyError) as caught:
        parse(text)
    assert str(caught.value).splitlines() == list(caught.value.mistakes)
    return list(caught.value.mistakes)


@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.stem)
def test_every_shipped_topology_loads(path: Path) -> None:
    topology = load_topology(path)
    assert topology.name == path.stem.replace("_", "-")
    assert topology.description
    assert all(node.settings.num_local_steps for node in topology.data_nodes)


def test_quickstart_is_three_levels_under_two_laws() -> None:
    topology = load_topology(next(path for path in SHIPPED if path.stem == "quickstart"))
    assert topology.depth == 3
    assert list(topology.nodes) == [
        "world",
        *("manuals", "topics", "docstrings"),
        *("code", "network", "tools"),
    ]
    laws = [topology.nodes[name].settings.jurisdiction for name in ("manuals", "code")]
    assert laws[0] != laws[1]


def test_all_mistakes_at_once_in_the_order_of_lines() -> None:
    reported = mistakes("""\
        name: my topology
        settings: {num_local_steps: x}
        root:
          name: world
          weight: 2
          children:
            - {name: a, corpsu: it}
            - {name: b, corpus: it, weight: -1}
            - {name: b, corpus: fr, settings: {participation: 0.5}}
            - {corpus: uk}
            - 7
            - {name: e f, corpus: it}
    """)
    expected = [
        (1, "name must be 1 to 100 letters"),
        (2, "num_local_steps must be a whole number"),
        (5, "weight has no effect at the root"),
        (7, "corpus is needed at node 'a'"),
        (7, "unknown key 'corpsu' in a child of 'world'"),
        (8, "weight must be a finite number above 0, but is -1.0"),
        (9, "name 'b' is already used by the node in line 8"),
        (9, "participation has no effect at a leaf"),
        (10, "a child of 'world' needs the key 'name'"),
        (11, "a child of 'world' must be a mapping"),
        (12, "name must be 1 to 100 letters"),
    ]
    assert len(reported) == len(expected)
    for got, (line, start) in zip(reported, expected, strict=True):
        assert got.startswith(f"t.yaml:{line}: {start}")


def test_a_mistake_of_many_nodes_is_reported_once() -> None:
    children = "".join(f"\n  - {{name: n{i}, corpus: c, wieght: 2}}" for i in range(9))
    steps, key = mistakes(f"name: t\nroot:\n  name: w\n  children:{children}")
    assert steps.startswith("t.yaml:5: num_local_steps is needed at node 'n0', which holds data")
    assert steps.endswith("; also in lines 6, 7, 8, 9, 10 and 3 more")
    assert key.startswith("t.yaml:5: unknown key 'wieght'")
    assert key.endswith("; also in lines 6, 7, 8, 9, 10 and 3 more")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "t.yaml:1: is empty"),
        ("# nothing\n", "t.yaml:1: is empty"),
        ("[]", "t.yaml:1: a topology must be a mapping"),
        (
            "name: t\nroot: {name: w}",
            "t.yaml:2: corpus is needed at node 'w', which has no children",
        ),
        ("name: t\nroot: {name: w, corpus: c}", "t.yaml:2: num_local_steps is needed at node 'w'"),
        ("name: t\nroot: {name: w, children: 3}", "t.yaml:2: children must be a list, but is '3'"),
        ("name: t\nroot: &w {name: w, children: [*w]}", "t.yaml:2: alias *w makes a cycle"),
        ("name: t\nroot: [", "t.yaml:2: while parsing a flow"),
        (
            "name: t\nroot: !!python/name:os.system x",
            "t.yaml:2: tag 'tag:yaml.org,2002:python/name",
        ),
        ("name: t\n---\nname: u", "t.yaml:2: expected a single document"),
        ("name: t\nroot: \x07", "t.yaml:2: character"),
        ('name: t\ndescription: "\\U00110000"', "t.yaml:"),
        ("name: t\nroot: " + "[" * 150 + "]" * 150, "t.yaml:2: is nested deeper than the 144 levels"),
    ],
)
def test_a_text_that_is_not_a_topology_is_rejected(text: str, expected: str) -> None:
    assert any(line.startswith(expected) for line in mistakes(text))


def test_an_alias_that_gives_a_node_two_parents_is_rejected() -> None:
    (message,) = mistakes("""\
        name: t
        settings: {num_local_steps: 1}
        root:
          name: w
          children:
            - {name: a, children: [&x {name: x, corpus: c}]}
            - name: b
              children: [*x]
    """)
    assert message.startswith("t.yaml:8: a node has one parent, but an alias uses the node of line 6 again")


def test_a_duplicate_name_on_one_line_is_rejected() -> None:
    text = "name: t\nsettings: {num_local_steps: 1}\nroot: {name: w, children: [{name: w, corpus: c}]}"
    (message,) = mistakes(text)
    assert message.startswith("t.yaml:3: name 'w' is already used by the node in line 3")


def test_aliased_settings_and_merge_keys_are_allowed() -> None:
    topology = parse("""\
        name: t
        settings: {num_local_steps: 1}
        root:
          name: w
          children:
            - {name: a, corpus: c, settings: &s {batch_size: 2, jurisdiction: no}}
            - {name: b, corpus: c, settings: {<<: *s, batch_size: 3}}
            - {name: c, corpus: c, settings: *s}
    """)
    sizes = [topology.nodes[name].settings.batch_size for name in "abc"]
    assert sizes == [2, 3, 2]
    assert {topology.nodes[name].settings.jurisdiction for name in "abc"} == {"no"}


def test_yaml_bombs_are_rejected_quickly() -> None:
    levels = [f"l{i + 1}: &l{i + 1} [{', '.join([f'*l{i}'] * 10)}]" for i in range(9)]
    (message,) = mistakes("\n".join(["l0: &l0 [x, x]", *levels]))
    assert "has more than the 10545 values allowed, aliases expanded" in message  # 10,000 and one per character
    chain = [f"c{i + 1}: &c{i + 1} [*c{i}]" for i in range(150)]
    (message,) = mistakes("\n".join(["c0: &c0 [x]", *chain]))
    assert "is nested deeper than the 144 levels allowed, aliases expanded" in message


def test_source_and_data_at_an_inner_node() -> None:
    topology = parse("""\
        name: t
        settings: {num_local_steps: 1}
        root:
          name: w
          corpus: own
          children:
            - name: a
              corpus: c
    """)
    assert [node.source for node in topology.nodes.values()] == ["t.yaml:4", "t.yaml:7"]
    assert [node.name for node in topology.data_nodes] == ["w", "a"]


def test_unreadable_files_are_rejected(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"name: t\ndescription: caf\xe9\n")
    with pytest.raises(TopologyError, match=r"latin.yaml:2: is not UTF-8: byte 0xe9"):
        load_topology(latin)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * 2_000_001)
    with pytest.raises(TopologyError, match="larger than the 2000000 bytes"):
        load_topology(large)
    with pytest.raises(TopologyError, match="is a folder"):
        load_topology(tmp_path)


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + b"name: t\nroot: {name: w, corpus: c, settings: {num_local_steps: 1}}")
    assert load_topology(path).name == "t"


OVERRIDDEN = """
name: two
settings: {num_local_steps: 500, batch_size: 4, privacy: {clip_norm: 1.0, noise_multiplier: 0.5}}
root:
  name: world
  children:
    - {name: a, corpus: a}
    - {name: b, corpus: b, settings: {num_local_steps: 7}}
"""


def test_overrides_replace_settings_at_the_top() -> None:
    settings = {"num_local_steps": 25, "outer_optimizer": {"name": "SGD", "lr": 0.7}, "privacy": {"clip_norm": 0.5}}
    nodes = parse_topology(OVERRIDDEN, "two.yaml", settings).nodes
    assert {name: node.settings.num_local_steps for name, node in nodes.items()} == {"world": 25, "a": 25, "b": 7}
    assert nodes["a"].settings.batch_size == 4
    assert nodes["a"].settings.privacy == Privacy(clip_norm=0.5, noise_multiplier=0.5)
    assert nodes["world"].settings.outer_optimizer == OuterOptimizer(name="SGD", arguments={"lr": 0.7})
    assert parse_topology(OVERRIDDEN, "two.yaml", {}) == parse_topology(OVERRIDDEN, "two.yaml")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_local_step": 3}, "federation.settings: .*'num_local_step'.*did you mean 'num_local_steps'"),
        ({"batch_size": 4, "num_local_steps": -1}, "federation.settings: num_local_steps"),
        ({"privacy": None}, "privacy may only be tightened below a private federation, but is removed"),
        ({"privacy": {"noise_multiplier": 0.1}}, "may only be tightened: at least 0.5"),
    ],
)
def test_mistakes_in_overrides(settings: dict[str, object], message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        parse_topology(OVERRIDDEN, "two.yaml", settings)


def test_a_world_without_a_training_node_is_rejected() -> None:
    text = (
        "name: t\nsettings: {num_local_steps: 1}\nroot: {name: w, children: [{name: a, corpus: c, settings: SETTINGS}]}"
    )
    assert parse(text.replace("SETTINGS", "{}")).nodes["a"].fits
    reported = mistakes(text.replace("SETTINGS", "{num_local_steps: 0}"))
    assert reported == ["t.yaml:3: no node trains: num_local_steps is 0 at every node that holds data"]


def test_a_dict_is_read_like_a_file() -> None:
    leaves = [{"name": "a", "corpus": "a", "settings": {"privacy": {"clip_norm": 1e-5}}}, {"name": "b", "corpus": "b"}]
    content = {"name": "t", "settings": {"num_local_steps": 3}, "root": {"name": "w", "children": leaves}}
    expected = parse(
        """
        name: t
        settings: {num_local_steps: 3}
        root:
          name: w
          children: [{name: a, corpus: a, settings: {privacy: {clip_norm: 1e-5}}}, {name: b, corpus: b}]
        """
    )
    assert load_topology(content) == expected
    assert load_topology(content, {"num_local_steps": 5}).nodes["a"].settings.num_local_steps == 5
    leaves[1]["corpsu"] = "b"
    with pytest.raises(TopologyError, match="topology:1: unknown key 'corpsu' in a child of 'w'.*mean 'corpus'"):
        load_topology(content)
    leaves[1]["corpsu"] = {1, 2}
    with pytest.raises(ValueError, match="plain values only: Object of type set"):
        load_topology(content)


def test_what_is_no_topology_is_named() -> None:
    with pytest.raises(ValueError, match="Node is not one of topologies: give .* worldlm.topology.Topology"):
        load_topology(parse("{name: t, root: {name: a, corpus: a, settings: {num_local_steps: 1}}}").root)  # type: ignore[arg-type]
