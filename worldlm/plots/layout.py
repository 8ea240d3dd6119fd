"""Where the boxes of a world stand in its picture: a column for each level, a row for each leaf."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from worldlm.plots.boxes import Box

FONT, SMALL = 9.0, 7.5
"""Sizes of names and of what is told below them, in points."""
LINE = 0.165
"""From line to line, in inches."""
PAD, GAP, FRAME = 0.08, 0.12, 0.1
"""Within a box, between two boxes, and from a frame to what it holds, in inches."""
_LETTER = 0.62 / 72  # inches that a letter is wide, for each point of its size
_BETWEEN = 0.5  # inches between two levels, beside what their edges tell


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A box and where it stands, in inches from the upper left corner; y grows downwards."""

    box: Box
    """What is drawn there."""
    level: int
    """Levels above it."""
    x: float
    """Its left edge."""
    y: float
    """Its middle."""
    width: float
    """Of the box."""
    height: float
    """Of the box."""
    top: float
    """Upper edge of its federation's frame; its own, where it has none."""
    bottom: float
    """Lower edge of that frame."""
    right: float
    """Right edge of that frame."""
    children: tuple[Place, ...]
    """The participants of its federation."""

    def walk(self) -> Iterator[Place]:
        """Yield this place and all below it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()


def text_width(text: str, size: float) -> float:
    """Estimate how wide a line is.

    Args:
        text: The line.
        size: Its font's, in points.

    Returns:
        Inches.
    """
    return len(text) * size * _LETTER


def place(root: Box) -> Place:
    """Place a world."""
    columns = _columns(root)
    return _place(root, 0, FRAME, columns)


def _columns(root: Box) -> list[tuple[float, float]]:
    """Return left edge and width of every level's boxes."""
    columns: list[tuple[float, float]] = []
    level, x = [root], 2 * FRAME
    while level:
        names = [1.1 * text_width(one.name, FONT) for one in level]
        lines = [text_width(line, SMALL) for one in level for line in one.lines]
        x += (_BETWEEN + max(text_width(one.edge, SMALL) for one in level)) if columns else 0.0
        columns.append((x, max(*names, *lines, 0.3) + 2 * PAD))
        x += columns[-1][1]
        level = [child for one in level for child in one.children]
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


def _lowered(one: Place, inches: float) -> Place:
    moved = {name: getattr(one, name) + inches for name in ("y", "top", "bottom")}
    return replace(one, **moved, children=tuple(_lowered(child, inches) for child in one.children))
