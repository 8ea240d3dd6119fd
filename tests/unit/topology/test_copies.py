"""Nodes with `copies`."""

from __future__ import annotations

from textwrap import dedent

import pytest

from worldlm.topology import Topology, TopologyError, draw_tree, load_topology, parse_topology, star


def parse(children: str) -> Topology:
    text = "name: t\nsettings: {num_local_steps: 3}\nroot:\n  name: w\n  children:\n"
    return parse_topology(text + "".join(f"    {line}\n" for line in dedent(children).strip().splitlines()), "t.yaml")


def mistakes(children: str) -> tuple[str, ...]:
    with pytest.raises(TopologyError) as caught:
        parse(children)
    return caught.value.mistakes


NESTED = """
    - name: region
      copies: 2
      settings: {batch_size: 7}
      children:
        - {name: hospital, corpus: notes, weight: 2, copies: 3}
        - {name: desk, corpus: desk}
    - {name: alone, corpus: alone, copies: 1}
"""


def test_copies_of_copies_are_written_out_outermost_suffix_first() -> None:
    topology = parse(NESTED)
    region = {i: [f"region_{i}", *(f"hospital_{i}_{j}" for j in (1, 2, 3)), f"desk_{i}"] for i in (1, 2)}
    assert list(topology.nodes) == ["w", *region[1], *region[2], "alone_1"]
    for name in ("hospital_1_1", "hospital_2_3"):
        node = topology.nodes[name]
        assert (node.corpus, node.weight, node.settings.batch_size) == ("notes", 2.0, 7)
        assert node.source == "t.yaml:10"
    parent = topology.parent("desk_2")
    assert parent is topology.nodes["region_2"]


def test_copies_equal_nodes_written_by_hand() -> None:
    by_hand = "\n".join(
        f"""\
- name: region_{i}
  settings: {{batch_size: 7}}
  children:
    - {{name: hospital_{i}_1, corpus: notes, weight: 2}}
    - {{name: hospital_{i}_2, corpus: notes, weight: 2}}
    - {{name: hospital_{i}_3, corpus: notes, weight: 2}}
    - {{name: desk_{i}, corpus: desk}}"""
        for i in (1, 2)
    )
    assert parse(NESTED) == parse(f"{by_hand}\n- {{name: alone_1, corpus: alone}}")


@pytest.mark.parametrize(
    ("children", "expected"),
    [
        ("- {name: a, corpus: c, copies: 0}", "t.yaml:6: copies must be at least 1, but is 0"),
        ("- {name: a, corpus: c, copies: many}", "t.yaml:6: copies must be a whole number, but is 'many'"),
        (
            "- {name: a, corpus: c, copies: 3}\n- {name: a_2, corpus: c}",
            "t.yaml:7: name 'a_2' is already used by the node in line 6, with copies expanded",
        ),
        (
            f"- name: a\n  copies: 10\n  children:\n    - {{name: {'b' * 97}, corpus: c, copies: 9}}",
            f"t.yaml:9: node '{'b' * 97}': name with its suffixes is longer than the 100 characters allowed",
        ),
        (
            "- name: a\n  copies: 1001\n  children:\n    - {name: b, corpus: c, copies: 1000}",
            "t.yaml:6: node 'a': expands to 1,002,001 nodes, descendants included; 1,000,000 are allowed",
        ),
        (
            "- name: a\n  children:\n    - {name: b, corpus: c, copies: 999_999_999_999_999_999_999_999}",
            "t.yaml:8: node 'b': expands to 999,999,999,999,999,999,999,999 nodes",
        ),
    ],
)
def test_invalid_copies_are_reported_with_their_line(children: str, expected: str) -> None:
    (mistake,) = mistakes(children)
    assert mistake.startswith(expected)


def test_the_root_has_no_copies() -> None:
    text = "name: t\nsettings: {num_local_steps: 3}\nroot: {name: w, copies: 2, corpus: c}"
    with pytest.raises(TopologyError, match="t.yaml:3: copies: a topology has only one root; put a node above it"):
        parse_topology(text, "t.yaml")


def test_the_first_copy_is_drawn_and_the_others_are_counted() -> None:
    assert draw_tree(parse(NESTED)).splitlines() == [
        "t",
        "w",
        "├── region_1          batch 7",
        "│   ├── hospital_1_1  corpus notes · 3 steps · weight 2",
        "│   ├── ...           2 more copies, up to hospital_1_3",
        "│   └── desk_1        corpus desk · 3 steps",
        "├── ...               1 more copies, up to region_2",
        "└── alone_1           corpus alone · 3 steps",
    ]
    drawn = draw_tree(star(parse(NESTED)))
    assert drawn.count("hospital_") == 4  # a first and a last of each region


def test_a_hundred_federations_of_a_thousand_nodes() -> None:
    topology = load_topology("hundred_thousand")
    assert (len(topology.nodes), len(topology.data_nodes), topology.depth) == (100_101, 100_000, 3)
    assert topology.name == "hundred-thousand"
    assert not any(node.settings.is_private for node in topology.data_nodes)
    assert len(draw_tree(topology).splitlines()) == 6
    assert {node.source.rpartition(":")[2] for node in topology.data_nodes} == {"13"}


def test_a_star_in_a_corpus_is_the_number_of_the_node_among_all_that_name_it() -> None:
    topology = parse("""
        - {name: first, corpus: notes_*}
        - name: region
          copies: 2
          children:
            - {name: hospital, corpus: notes_*, copies: 2}
            - {name: desk, corpus: desk_*_text}
        - {name: fixed, corpus: notes_1}
    """)
    assert {node.name: node.corpus for node in topology.data_nodes} == {
        "first": "notes_1",
        "hospital_1_1": "notes_2",
        "hospital_1_2": "notes_3",
        "desk_1": "desk_1_text",
        "hospital_2_1": "notes_4",
        "hospital_2_2": "notes_5",
        "desk_2": "desk_2_text",
        "fixed": "notes_1",
    }


def test_a_corpus_has_one_star_at_most() -> None:
    (mistake,) = mistakes("- {name: a, corpus: notes_*_*}")
    assert mistake == "t.yaml:6: corpus must be 1 to 100 letters, digits, '_' or '-', but is 'notes_*_*'"
