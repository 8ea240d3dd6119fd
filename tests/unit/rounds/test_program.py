"""One round compiled into a flat list of steps."""

from collections import Counter

import pytest

from worldlm.rounds.program import Step, compile_round, num_visits
from worldlm.topology import Node, Settings, Topology


def node(name: str, *children: Node, corpus: str | None = None, num_subrounds: int = 1) -> Node:
    settings = Settings(num_local_steps=1, num_subrounds=num_subrounds)
    return Node(name=name, corpus=corpus, settings=settings, children=children)


def leaf(name: str, **options) -> Node:
    return node(name, corpus="text", **options)


def world(root: Node) -> Topology:
    return Topology(name="t", root=root)


def compiled(root: Node) -> list[str]:
    """Return the program as lines 'kind node subround'."""
    return [f"{step.kind} {step.node} {step.subround}" for step in compile_round(world(root))]


def nested() -> Node:
    """Two sub-rounds of the world, each with two of west, which trains too; ten fits in all."""
    west = node("west", leaf("it"), corpus="text", num_subrounds=2)
    return node("world", west, leaf("uk"), num_subrounds=2)


def test_a_node_alone() -> None:
    assert compiled(leaf("me")) == ["open me 0", "fit me 0"]


def test_a_node_alone_with_subrounds() -> None:
    assert compiled(leaf("me", num_subrounds=2)) == ["open me 0", "fit me 0", "open me 1", "fit me 1"]


def test_a_star() -> None:
    assert compiled(node("world", leaf("it"), leaf("fr"))) == [
        "open world 0",
        "receive it 0",
        "fit it 0",
        "upload it 0",
        "receive fr 0",
        "fit fr 0",
        "upload fr 0",
        "aggregate world 0",
    ]


def test_a_parent_with_data_fits_after_it_has_fixed_what_it_sends() -> None:
    assert compiled(node("world", leaf("it"), corpus="text")) == [
        "open world 0",
        "fit world 0",
        "receive it 0",
        "fit it 0",
        "upload it 0",
        "aggregate world 0",
    ]


def test_three_levels() -> None:
    west = node("west", leaf("it"), leaf("fr"))
    assert compiled(node("world", west, leaf("uk"))) == [
        "open world 0",
        "receive west 0",
        "open west 0",
        "receive it 0",
        "fit it 0",
        "upload it 0",
        "receive fr 0",
        "fit fr 0",
        "upload fr 0",
        "aggregate west 0",
        "upload west 0",
        "receive uk 0",
        "fit uk 0",
        "upload uk 0",
        "aggregate world 0",
    ]


def test_nested_subrounds_count_on_over_the_whole_round() -> None:
    def of_world(s: int) -> list[str]:
        return [
            f"open world {s}",
            f"receive west {s}",
            *(line for inner in (2 * s, 2 * s + 1) for line in of_west(inner)),
            f"upload west {s}",
            f"receive uk {s}",
            f"fit uk {s}",
            f"upload uk {s}",
            f"aggregate world {s}",
        ]

    def of_west(s: int) -> list[str]:
        return [
            f"open west {s}",
            f"fit west {s}",
            f"receive it {s}",
            f"fit it {s}",
            f"upload it {s}",
            f"aggregate west {s}",
        ]

    assert compiled(nested()) == of_world(0) + of_world(1)


def test_subrounds_of_a_leaf_with_a_parent_change_nothing() -> None:
    assert compiled(node("world", leaf("it", num_subrounds=5))) == compiled(node("world", leaf("it")))


def test_steps_are_plain_values() -> None:
    assert compile_round(world(leaf("me"))) == (Step("open", "me", 0), Step("fit", "me", 0))


@pytest.mark.parametrize("root", [leaf("me", num_subrounds=3), nested(), node("top", nested(), num_subrounds=3)])
def test_kind_node_and_subround_identify_a_step(root) -> None:
    program = compile_round(world(root))
    assert max(Counter((step.kind, step.node, step.subround) for step in program).values()) == 1


def test_visits_multiply_with_the_subrounds_above() -> None:
    top = node("top", nested(), leaf("bg"), num_subrounds=3)
    assert num_visits(world(top)) == {"west": 12, "it": 12, "uk": 6, "bg": 3}


def test_visits_of_a_node_alone() -> None:
    assert num_visits(world(leaf("me", num_subrounds=4))) == {"me": 4}


def listener(name: str, *children: Node) -> Node:
    corpus = None if children else "text"
    return Node(name=name, corpus=corpus, settings=Settings(num_local_steps=0), children=children)


def test_listeners_receive_before_any_node_trains_and_send_nothing() -> None:
    west = node("west", leaf("it"), listener("sc"), corpus="text")
    assert compiled(node("world", west, listener("deaf", listener("uk")))) == [
        "open world 0",
        "receive deaf 0",
        "open deaf 0",
        "receive uk 0",
        "receive west 0",
        "open west 0",
        "receive sc 0",
        "fit west 0",
        "receive it 0",
        "fit it 0",
        "upload it 0",
        "aggregate west 0",
        "upload west 0",
        "aggregate world 0",
    ]


def test_a_node_whose_children_all_listen_does_not_aggregate() -> None:
    assert compiled(node("world", listener("it"), corpus="text")) == ["open world 0", "receive it 0", "fit world 0"]


def test_a_listener_makes_no_visits() -> None:
    assert num_visits(world(node("world", leaf("it"), listener("sc")))) == {"it": 1, "sc": 0}
