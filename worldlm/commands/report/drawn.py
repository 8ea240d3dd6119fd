"""Pictures as parts of a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.figure import Figure

from worldlm.commands.compare.figures import by_round_at, looks
from worldlm.commands.report.tags import NOTHING, Html, element, joined
from worldlm.plots.style import COLOURS, inline_svg
from worldlm.runs.results import MOMENTS, RunRecord

INCHES = 6.4
"""Width of a picture with axes on the page."""
MOST_LEAVES = 20
"""Leaves that a picture of a world shows at most: one scrolls past it."""
MAX_PANELS = 12
"""Nodes whose curves are drawn."""
_SIGNS = {None: "", "o": "●", "s": "■", "^": "▲"}


def picture(draw: Callable[[], Figure], salt: str, label: str) -> Html:
    """Draw a picture, with names as they are written, whatever they hold.

    Args:
        draw: Returns it.
        salt: Tells it from all others of the page; see `inline_svg`.
        label: What it shows.
    """
    with matplotlib.rc_context({"text.parse_math": False}):
        drawn = inline_svg(draw(), salt, label)
    return element("div", Html(drawn), class_="wide picture", tabindex="0")


def curves(records: Sequence[RunRecord], nodes: Sequence[str], salt: str) -> Html:
    """Draw perplexity by round, a small picture for each node, as many beside one another as there is room for."""
    measured = [
        node for node in nodes if any(one.series(node, moment) for one in records for moment in MOMENTS)
    ]  # fmt: skip
    if not measured:
        return NOTHING
    shown = measured[:MAX_PANELS]
    panels = (
        picture(lambda node=node: by_round_at(records, node), f"{salt}-curve{i}", f"perplexity of {node} by round")  # type: ignore[misc]
        for i, node in enumerate(shown)
    )
    told = "Held-out perplexity by round; solid after_merge, dotted after_fit."
    if len(shown) < len(measured):
        told += f" The first {len(shown)} of {len(measured):,} nodes."
    return joined([element("p", told), element("div", *panels, class_="panels")])


def legend(methods: Sequence[str]) -> Html:
    """Return which colour is whose in pictures of several methods."""
    told = []
    for method, look in zip(methods, looks(), strict=False):
        i = COLOURS.index(look["color"])
        colour = "currentColor" if COLOURS[i] == "#000000" else f"var(--c{i},{COLOURS[i]})"
        swatch = element("span", _SIGNS[look["marker"]], class_="swatch", style=f"--colour:{colour}")
        told.append(element("li", swatch, method))
    return element("ul", *told, class_="legend")
