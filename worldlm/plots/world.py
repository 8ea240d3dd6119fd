"""A plot of a topology: the root on the left, a frame around every federation, arrows for routed residuals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, PathPatch
from matplotlib.path import Path as Stroke

from worldlm.plots.boxes import Box, shortened
from worldlm.plots.layout import FONT, FRAME, LINE, PAD, SMALL, Place, place, text_width
from worldlm.plots.style import COLOURS

_TITLE = 0.35  # inches


def draw_world(root: Box, title: str = "", arrows: Mapping[tuple[str, str], int] | None = None) -> Figure:
    """Draw a topology; of a wide one, only the first children of every federation.

    Args:
        root: The box of the root, with its descendants.
        title: The title above the plot.
        arrows: (origin, destination) -> number of residuals; arrows of nodes that are not drawn are left out.

    Returns:
        A figure with a size that fits the topology.
    """
    world = place(shortened(root))
    above = _TITLE if title else 0.0
    figure = Figure()
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.text(2 * FRAME, -_TITLE / 3, title, fontsize=FONT + 1, weight="bold", va="center")
    hues = _hues(world)
    _draw(axes, world, hues)
    right = _draw_arrows(axes, world, arrows or {}, hues)
    width, height = max(right + FRAME, text_width(title, FONT + 1) + 4 * FRAME), world.bottom + FRAME
    axes.set_xlim(0, width)
    axes.set_ylim(height, -above)
    figure.set_size_inches(width, height + above)
    return figure


def _hues(world: Place) -> dict[str, str]:
    """Return node -> colour; each child of the root and its descendants share one."""
    hues = {world.box.name: COLOURS[-1]}
    for i, child in enumerate(world.children):
        hues |= {below.box.name: COLOURS[i % (len(COLOURS) - 2)] for below in child.walk()}
    return hues


def _draw(axes: Axes, node: Place, hues: Mapping[str, str]) -> None:
    """Draw a node and its descendants."""
    colour = hues[node.box.name]
    if node.children:
        size = (node.right - node.x + FRAME, node.bottom - node.top)
        _frame(axes, (node.x - FRAME, node.top), size, facecolor=(colour, 0.08), edgecolor=(colour, 0.5))
    for child in node.children:
        _draw_edge(axes, node, child)
        _draw(axes, child, hues)
    fill = (COLOURS[0], 0.1 + 0.4 * node.box.shade) if node.box.shade else "none"
    edge = "black" if node.box.name else "none"
    _frame(axes, (node.x, node.y - node.height / 2), (node.width, node.height), facecolor=fill, edgecolor=edge)
    y = node.y - node.height / 2 + PAD + LINE / 2
    heading = [(node.box.name, FONT, "bold")] if node.box.name else []
    for text, points, weight in (*heading, *((line, SMALL, "normal") for line in node.box.lines)):
        axes.text(node.x + PAD, y, text, fontsize=points, weight=weight, va="center")
        y += LINE


def _frame(axes: Axes, corner: tuple[float, float], size: tuple[float, float], **looks: object) -> None:
    style = "round,pad=0,rounding_size=0.06"
    axes.add_patch(FancyBboxPatch(corner, *size, boxstyle=style, linewidth=0.8, mutation_aspect=1, **looks))  # type: ignore[arg-type]


def _draw_edge(axes: Axes, parent: Place, child: Place) -> None:
    start, end = (parent.x + parent.width, parent.y), (child.x, child.y)
    middle = start[0] + 0.25
    stroke = Stroke(
        [start, (middle, start[1]), (middle - 0.1, end[1]), (middle + 0.15, end[1]), end],
        [Stroke.MOVETO, Stroke.CURVE4, Stroke.CURVE4, Stroke.CURVE4, Stroke.LINETO],
    )
    width = child.box.edge_width
    axes.add_patch(PathPatch(stroke, facecolor="none", edgecolor=COLOURS[-1], linewidth=width, capstyle="butt"))
    x, y = child.x - 0.08, child.y - 0.07 - width / 144
    axes.text(x, y, child.box.edge, fontsize=SMALL, va="center", ha="right")


def _draw_arrows(axes: Axes, world: Place, arrows: Mapping[tuple[str, str], int], hues: Mapping[str, str]) -> float:
    """Draw arcs on the right of the topology, from the boxes of origins to the boxes or frames of destinations.

    Returns:
        The right edge of the arcs, in inches.
    """
    shown = {node.box.name: node for node in world.walk()}
    drawn = {ends: count for ends, count in arrows.items() if ends[0] in shown and ends[1] in shown}
    ports = _ports(shown, list(drawn))
    reach = world.right
    nearest_first = sorted(drawn.items(), key=lambda arrow: abs(shown[arrow[0][0]].y - shown[arrow[0][1]].y))
    for i, ((origin, destination), count) in enumerate(nearest_first):
        start, end = ports[origin, destination, 0], ports[origin, destination, 1]
        bulge = world.right + 0.3 + 0.3 * i
        width = min(0.8 + 0.3 * count, 3.5)
        stroke = Stroke([start, (bulge, start[1]), (bulge, end[1]), end], [Stroke.MOVETO, *[Stroke.CURVE4] * 3])
        axes.add_patch(
            FancyArrowPatch(
                path=stroke,
                arrowstyle=f"-|>,head_length={2 + width},head_width={1 + width / 2}",
                color=(hues[origin], 0.9),
                linewidth=width,
            )
        )
        middle = (start[0] + 6 * bulge + end[0]) / 8
        axes.text(middle + 0.04 + width / 144, (start[1] + end[1]) / 2, str(count), fontsize=SMALL, va="center")
        reach = max(reach, middle + 0.3)
    return reach


def _ports(
    shown: Mapping[str, Place], arrows: Sequence[tuple[str, str]]
) -> dict[tuple[str, str, int], tuple[float, float]]:
    """Return the start (0) and the end (1) of every arrow (origin, destination), spread over the height of a node."""
    ends: dict[str, list[tuple[float, tuple[str, str, int]]]] = {}
    for origin, destination in arrows:
        ends.setdefault(origin, []).append((shown[destination].y, (origin, destination, 0)))
        ends.setdefault(destination, []).append((shown[origin].y, (origin, destination, 1)))
    ports = {}
    for name, node_ends in ends.items():
        node = shown[name]
        step = 0.8 * node.height / len(node_ends)
        for i, (_, key) in enumerate(sorted(node_ends)):
            ports[key] = (node.right, node.y + (i - (len(node_ends) - 1) / 2) * step)
    return ports
