"""Pictures of a page, as inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.figure import Figure

from worldlm.commands.compare.plots import line_styles, round_panel
from worldlm.commands.report.html_tags import NOTHING, Html, element, joined
from worldlm.plots.style import COLOURS, inline_svg
from worldlm.runs.results import MOMENTS, RunRecord

INCHES = 6.4
"""Width of a picture with axes."""
MAX_LEAVES = 20
"""Most leaves in a picture of a world."""
MAX_PANELS = 12
"""Most nodes whose curves are drawn."""
_SIGNS = {None: "", "o": "●", "s": "■", "^": "▲"}


def picture(draw: Callable[[], Figure], salt: str, label: str) -> Html:
    """Return a picture as HTML. Names in it are not read as mathematics.

    Args:
        draw: Returns the picture.
        salt: Distinguishes its ids from those of all other pictures of the page; see `inline_svg`.
        label: A description for screen readers.
    """
    with matplotlib.rc_context({"text.parse_math": False}):
        svg = inline_svg(draw(), salt, label)
    return element("div", Html(svg), class_="wide picture", tabindex="0")


def curves(records: Sequence[RunRecord], nodes: Sequence[str], salt: str) -> Html:
    """Draw perplexity by round, in a small picture for each node."""
    measured = [node for node in nodes if any(record.series(node, m) for record in records for m in MOMENTS)]
    if not measured:
        return NOTHING
    shown = measured[:MAX_PANELS]
    panels = (
        element("figure", element("figcaption", node), _panel(records, node, f"{salt}-curve{i}"))
        for i, node in enumerate(shown)
    )
    note = "Held-out perplexity by round; solid after_merge, dotted after_fit."
    if len(shown) < len(measured):
        note += f" The first {len(shown)} of {len(measured):,} nodes."
    return joined([element("p", note), element("div", *panels, class_="panels")])


def _panel(records: Sequence[RunRecord], node: str, salt: str) -> Html:
    return picture(lambda: round_panel(records, node), salt, f"perplexity of {node} by round")


def legend(methods: Sequence[str]) -> Html:
    """Return the legend of pictures of several methods."""
    entries = []
    for method, style in zip(methods, line_styles(), strict=False):
        i = COLOURS.index(style["color"])
        colour = "currentColor" if COLOURS[i] == "#000000" else f"var(--c{i},{COLOURS[i]})"
        swatch = element("span", _SIGNS[style["marker"]], class_="swatch", style=f"--colour:{colour}")
        entries.append(element("li", swatch, method))
    return element("ul", *entries, class_="legend")
