"""The positions of boxes in a plot of a topology: a column for each level, a row for each leaf."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from worldlm.plots.boxes import Box

FONT, SMALL = 9.0, 7.5
"""Font sizes of names and of the lines below them, in points."""
LINE = 0.165
"""Distance between lines, in inches."""
PAD, GAP, FRAME = 0.08, 0.12, 0.1
"""Space within a box, between two boxes, and within a frame, in inches."""
_LETTER = 0.62 / 72  # width of a letter in inches, per point of its size
_BETWEEN = 0.5  # inches between two levels, in addition to the labels of their edges


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A box and its position, in inches from the upper left corner; y grows downwards."""

    box: Box
    """The box."""
    level: int
    """Number of levels above it."""
    x: float
    """Its left edge."""
    y: float
    """Its vertical centre."""
    width: float
    """Width of the box."""
    height: float
    """Height of the box."""
    top: float
    """Upper edge of its federation's frame, or of the box if it has no federation."""
    bottom: float
    """Lower edge of that frame."""
    right: float
    """Right edge of that frame."""
    children: tuple[Place, ...]
    """The participants of its federation."""

    def walk(self) -> Iterator[Place]:
        """Yield this place and its descendants, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()


def text_width(text: str, size: float) -> float:
    """Estimate the width of a line.

    Args:
        text: The line.
        size: The font size, in points.

    Returns:
        Inches.
    """
    return len(text) * size * _LETTER


def place(root: Box) -> Place:
    """Return the positions of a root and its descendants."""
    columns = _columns(root)
    return _place(root, 0, FRAME, columns)


def _columns(root: Box) -> list[tuple[float, float]]:
    """Return the left edge and the width of the boxes of every level."""
    columns: list[tuple[float, float]] = []
    level, x = [root], 2 * FRAME
    while level:
        names = [1.1 * text_width(box.name, FONT) for box in level]
        lines = [text_width(line, SMALL) for box in level for line in box.lines]
        x += (_BETWEEN + max(text_width(box.edge, SMALL) for box in level)) if columns else 0.0
        columns.append((x, max(*names, *lines, 0.3) + 2 * PAD))
        x += columns[-1][1]
        level = [child for box in level for child in box.children]
    return columns


def _place(box: Box, level: int, top: float, columns: Sequence[tuple[float, float]]) -> Place:
    x, width = columns[level]
    height = (bool(box.name) + len(box.lines)) * LINE + 2 * PAD
    leaf = Place(
        box=box, level=level, x=x, y=top + height / 2, width=width, height=height,
        top=top, bottom=top + height, right=x + width, children=(),
    )  # fmt: skip
    if not box.children:
        return leaf
    children, below = [], top + FRAME
    for child in box.children:
        children.append(_place(child, level + 1, below, columns))
        below = children[-1].bottom + GAP
    spare = height - (below - GAP - top - FRAME)
    if spare > 0:
        children = [_lowered(child, spare / 2) for child in children]
    return replace(
        leaf,
        y=(children[0].y + children[-1].y) / 2,
        bottom=below - GAP + max(spare, 0.0) + FRAME,
        right=max(child.right for child in children) + FRAME,
        children=tuple(children),
    )


def _lowered(box_place: Place, inches: float) -> Place:
    moved = {name: getattr(box_place, name) + inches for name in ("y", "top", "bottom")}
    return replace(box_place, **moved, children=tuple(_lowered(child, inches) for child in box_place.children))
