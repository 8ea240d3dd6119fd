"""A tree in other shapes: the remaining nodes, their corpora and their local steps."""

import pytest

from worldlm.topology import (
    Topology,
    draw_tree,
    parse_topology,
    reshape,
    single,
    split_rounds,
    star,
    steps_per_round,
)

TREE = """\
name: t
settings: {num_local_steps: 6, batch_size: 2}
root:
  name: world
  settings: {num_subrounds: 2}
  children:
    - name: west
      corpus: e
      weight: 3
      settings: {num_subrounds: 3, jurisdiction: eu}
      children:
        - {name: it, corpus: it, weight: 2}
        - {name: fr, corpus: fr, settings: {num_local_steps: 12}}
    - {name: uk, corpus: uk}
    - name: north
      settings: {num_subrounds: 1}
      children: [{name: se, corpus: se}, {name: ear, corpus: se, settings: {num_local_steps: 0}}]
"""


def tree(*changes: tuple[str, str]) -> Topology:
    text = TREE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return parse_topology(text, "t.yaml")


def corpora_and_steps(topology: Topology) -> dict[str, tuple[str | None, int | None]]:
    return {name: (node.corpus, node.settings.num_local_steps) for name, node in topology.nodes.items()}


def test_steps_of_a_round() -> None:
    assert steps_per_round(tree()) == {"west": 36, "it": 36, "fr": 72, "uk": 12, "se": 12, "ear": 0}


def test_a_star_has_all_data_nodes_below_its_root_and_as_many_steps() -> None:
    flat = star(tree())
    assert corpora_and_steps(flat) == {
        "world": (None, 6),
        "west": ("e", 18),
        "it": ("it", 18),
        "fr": ("fr", 36),
        "uk": ("uk", 6),
        "se": ("se", 6),
        "ear": ("se", 0),
    }
    assert {flat.parent(name).name for name in flat.nodes if name != "world"} == {"world"}  # type: ignore[union-attr]
    assert steps_per_round(flat) == steps_per_round(tree())
    assert (flat.nodes["west"].weight, flat.nodes["it"].weight) == (3, 2)
    assert flat.nodes["it"].settings.jurisdiction == "eu"
    assert flat.nodes["ear"].listens


def test_a_root_that_holds_data_keeps_it_in_a_star() -> None:
    root = star(tree(("name: world\n", "name: world\n  corpus: e\n"))).root
    assert (root.corpus, root.settings.num_local_steps, len(root.children)) == ("e", 6, 6)


@pytest.mark.parametrize("shape", ["star", "single", "single_all_tokens"])
def test_reshaping_twice_changes_nothing(shape: str) -> None:
    once = reshape(tree(), shape)  # type: ignore[arg-type]
    assert reshape(once, shape) == once  # type: ignore[arg-type]
    alone = parse_topology("name: t\nsettings: {num_local_steps: 2}\nroot: {name: me, corpus: c}", "t.yaml")
    assert reshape(alone, shape) == alone  # type: ignore[arg-type]
    assert reshape(tree(), "tree") == tree()


def test_a_star_of_leaves_is_unchanged() -> None:
    text = (
        "name: t\nsettings: {num_local_steps: 3, num_subrounds: 2}\nroot: {name: w, children: [{name: a, corpus: c}]}"
    )
    assert star(parse_topology(text, "t.yaml")) == parse_topology(text, "t.yaml")


@pytest.mark.parametrize(("all_tokens", "steps"), [(False, 72), (True, 36 + 36 + 72 + 12 + 12)])
def test_a_single_root_trains_and_all_others_listen(all_tokens: bool, steps: int) -> None:
    pooled = single(tree(), all_tokens=all_tokens)
    corpora = {"west": "e", "it": "it", "fr": "fr", "uk": "uk", "se": "se", "ear": "se"}
    assert corpora_and_steps(pooled) == {"world": ("all", steps)} | {
        name: (corpus, 0) for name, corpus in corpora.items()
    }
    assert steps_per_round(pooled) == dict.fromkeys(corpora, 0) | {"world": steps}
    assert (pooled.root.settings.batch_size, pooled.depth) == (2, 2)
    assert [node.name for node in pooled.nodes.values() if not node.listens] == ["world"]
    assert "├── it    corpus it · listens · weight 2 · jurisdiction eu\n" in draw_tree(pooled)


def test_the_batch_of_a_single_root_is_that_of_the_nodes() -> None:
    sizes = [
        ("num_subrounds: 2", "num_subrounds: 2, batch_size: 4"),
        ("{name: uk", "{settings: {batch_size: 5}, name: uk"),
    ]
    assert single(tree(sizes[0])).root.settings.batch_size == 4
    with pytest.raises(ValueError, match=r"shape single needs one batch_size, but the nodes of t have 2, 5$"):
        single(tree(sizes[1]))


@pytest.mark.parametrize("kind", ["privacy", "example_privacy"])
def test_private_text_is_not_pooled(kind: str) -> None:
    private = tree(("jurisdiction: eu", f"{kind}: {{clip_norm: 1}}"))
    with pytest.raises(ValueError, match=r"^shape single pools .* but these nodes are private: west, it, fr$"):
        single(private)
    assert {getattr(star(private).nodes[name].settings, kind).clip_norm for name in ("it", "fr", "west")} == {1}


def test_an_unknown_shape() -> None:
    with pytest.raises(ValueError, match="shape must be one of tree, star, single, single_all_tokens, got 'ring'"):
        reshape(tree(), "ring")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("num_subrounds", "west", "it", "fr", "se"), [(1, 18, 18, 36, 6), (3, 6, 6, 12, 2), (6, 3, 3, 6, 1)]
)
def test_sub_rounds_share_the_steps_of_a_round(num_subrounds: int, west: int, it: int, fr: int, se: int) -> None:
    deeper = split_rounds(tree(), num_subrounds)
    expected = {"world": 6, "west": west, "it": it, "fr": fr, "uk": 6, "north": 6, "se": se, "ear": 0}
    assert {name: node.settings.num_local_steps for name, node in deeper.nodes.items()} == expected
    assert steps_per_round(deeper) == steps_per_round(tree())
    subrounds = {name: node.settings.num_subrounds for name, node in deeper.nodes.items() if node.children}
    assert subrounds == {"world": 2, "west": num_subrounds, "north": num_subrounds}


def test_sub_rounds_within_sub_rounds_divide_twice() -> None:
    x = "{name: x, children: [{name: y, children: [{name: a, corpus: c}]}]}"
    text = f"name: t\nsettings: {{num_local_steps: 8}}\nroot: {{name: w, children: [{x}]}}"
    assert split_rounds(parse_topology(text, "t.yaml"), 2).nodes["a"].settings.num_local_steps == 2


@pytest.mark.parametrize(
    ("num_subrounds", "message"),
    [
        (4, r"^num_subrounds is 4, which does not divide the local steps: 36 of west, 36 of it, 12 of se$"),
        (0, "num_subrounds must be a finite number at least 1, but is 0"),
    ],
)
def test_sub_rounds_that_do_not_divide_the_steps(num_subrounds: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_rounds(tree(), num_subrounds)


def test_sub_rounds_need_a_federation_below_the_root() -> None:
    with pytest.raises(ValueError, match="num_subrounds is 3: t has no federation below its root"):
        split_rounds(star(tree()), 3)
