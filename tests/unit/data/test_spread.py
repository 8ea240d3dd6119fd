"""How text is spread over nodes is shown as text."""

from __future__ import annotations

from worldlm.data.spread import NodeText, spread_lines


def node(name: str, corpus: str, num_tokens: int, **values: int) -> NodeText:
    return NodeText(name=name, corpus=corpus, num_tokens=num_tokens, values=values)


def test_tokens_of_each_node_with_a_bar() -> None:
    assert list(spread_lines([node("a", "it_1", 1200), node("longer", "fr", 400), node("c", "x", 1)])) == [
        "training tokens of each node:",
        f"  a       it_1  1,200  {'█' * 30}",
        f"  longer  fr      400  {'█' * 10}",
        "  c       x         1  █",
    ]


def test_shares_of_the_values_in_each_node() -> None:
    lines = list(spread_lines([node("a", "x_1", 100, it=91, fr=9), node("b", "x_2", 50, fr=50), node("c", "y", 5)]))
    assert lines[4:] == [
        "share of each value in the training tokens of a node:",
        "              it      fr",
        "  a  x_1  ▇  91%  ▁   9%",
        "  b  x_2          █ 100%",
    ]


def test_rare_values_share_a_column() -> None:
    values = {f"value{number}": 100 - number for number in range(11)}
    lines = list(spread_lines([node("a", "x", sum(values.values()), **values)]))
    assert lines[-2].endswith("  value7  3 others")
    assert lines[-1].endswith(f"{(92 + 91 + 90) / sum(values.values()):.0%}")
