"""Properties of plots: for any topology, boxes do not overlap."""

from hypothesis import given, settings
from hypothesis import strategies as st

from worldlm.plots.boxes import Box, shortened
from worldlm.plots.layout import FRAME, Place, place

FEW = settings(max_examples=100)


@st.composite
def worlds(draw: st.DrawFn) -> Box:
    """A tree of boxes: node i is the child of an earlier node and has up to five lines."""
    num_nodes = draw(st.integers(1, 30))
    below: list[list[int]] = [[] for _ in range(num_nodes)]
    for i in range(1, num_nodes):
        below[draw(st.integers(0, i - 1))].append(i)
    lines = draw(st.lists(st.integers(0, 5), min_size=num_nodes, max_size=num_nodes))

    def box(i: int) -> Box:
        return Box(name=f"n{i}", lines=("a line",) * lines[i], children=tuple(map(box, below[i])))

    return box(0)


def overlap(first: Place, second: Place) -> bool:
    separate = first.x + first.width <= second.x or second.x + second.width <= first.x
    return not separate and abs(first.y - second.y) < (first.height + second.height) / 2 - 1e-9


@FEW
@given(worlds())
def test_boxes_do_not_overlap_and_are_within_their_frames(world: Box) -> None:
    places = list(place(world).walk())
    assert [node.box for node in places] == list(world.walk())
    assert not any(overlap(first, second) for i, first in enumerate(places) for second in places[:i])
    for node in places:
        assert node.top - 1e-9 <= node.y - node.height / 2
        assert node.y + node.height / 2 <= node.bottom + 1e-9
        for child in node.children:
            assert node.top + FRAME <= child.top + 1e-9
            assert child.bottom <= node.bottom - FRAME + 1e-9
            assert child.right <= node.right - FRAME + 1e-9


@FEW
@given(worlds(), st.integers(1, 12))
def test_a_shortened_topology_fits_if_possible(world: Box, max_rows: int) -> None:
    shown = shortened(world, max_rows)
    num_federations = sum(bool(box.children) for box in world.walk())
    assert shown.num_leaves <= max(max_rows, 2 * num_federations)
    named = {box.name for box in shown.walk() if box.name}
    assert named <= {box.name for box in world.walk()}
    left_out = [int(box.lines[0].split()[1]) for box in shown.walk() if not box.name]
    assert all(number > 0 for number in left_out)
