"""The tree as a Mermaid flowchart."""

from worldlm.topology import draw_mermaid, parse_topology


def test_a_subgraph_for_each_federation() -> None:
    text = """\
name: t
settings: {num_local_steps: 5}
root:
  name: end
  children:
    - {name: west, children: [{name: a, corpus: it}]}
    - {name: b, corpus: fr}
"""
    assert draw_mermaid(parse_topology(text, "t.yaml")).splitlines() == [
        "flowchart LR",
        '  subgraph n0_federation[" "]',
        '    n0["<b>end</b>"]',
        '    subgraph n1_federation[" "]',
        '      n1["<b>west</b>"]',
        '      n2["<b>a</b><br/>corpus it<br/>5 steps"]',
        "      n1 --- n2",
        "    end",
        "    n0 --- n1",
        '    n3["<b>b</b><br/>corpus fr<br/>5 steps"]',
        "    n0 --- n3",
        "  end",
    ]
