"""Laws of pictures: whatever the world, nothing covers anything else."""

from hypothesis import given, settings
from hypothesis import strategies as st

from worldlm.plots.boxes import Box, shortened
from worldlm.plots.layout import FRAME, Place, place

FEW = settings(max_examples=100)


@st.composite
def worlds(draw: st.DrawFn) -> Box:
    """Node i hangs below an earlier node, and tells up to five lines."""
    num_nodes = draw(st.integers(1, 30))
    below: list[list[int]] = [[] for _ in range(num_nodes)]
    for i in range(1, num_nodes):
        below[draw(st.integers(0, i - 1))].append(i)
    lines = draw(st.lists(st.integers(0, 5), min_size=num_nodes, max_size=num_nodes))

    def box(i: int) -> Box:
        return Box(name=f"n{i}", lines=("a line",) * lines[i], children=tuple(map(box, below[i])))

    return box(0)


def overlap(one: Place, other: Place) -> bool:
    apart = one.x + one.width <= other.x or other.x + other.width <= one.x
    return not apart and abs(one.y - other.y) < (one.height + other.height) / 2 - 1e-9


@FEW
@given(worlds())
def test_boxes_lie_apart_and_within_their_frames(world: Box) -> None:
    places = list(place(world).walk())
    assert [one.box for one in places] == list(world.walk())
    assert not any(overlap(one, other) for i, one in enumerate(places) for other in places[:i])
    for one in places:
        assert one.top - 1e-9 <= one.y - one.height / 2
        assert one.y + one.height / 2 <= one.bottom + 1e-9
        for child in one.children:
            assert one.top + FRAME <= child.top + 1e-9
            assert child.bottom <= one.bottom - FRAME + 1e-9
            assert child.right <= one.right - FRAME + 1e-9


@FEW
@given(worlds(), st.integers(1, 12))
def test_a_shortened_world_has_room_where_it_can(world: Box, max_rows: int) -> None:
    shown = shortened(world, max_rows)
    num_federations = sum(bool(one.children) for one in world.walk())
    assert shown.num_leaves <= max(max_rows, 2 * num_federations)
    named = {one.name for one in shown.walk() if one.name}
    assert named <= {one.name for one in world.walk()}
    left_out = [int(one.lines[0].split()[1]) for one in shown.walk() if not one.name]
    assert all(number > 0 for number in left_out)
