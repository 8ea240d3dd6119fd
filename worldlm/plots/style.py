"""Colours of all plots, and their export to files."""

from __future__ import annotations

import html
import io
import re
import warnings
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from worldlm.files.atomic_write import write_bytes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c8c8c")
"""The palette of Okabe and Ito, which is suitable for colour-blind readers."""
INCHES, DPI = 10.0, 120
"""Width and resolution of a plot with axes: 1200 pixels."""


def shorten(name: str, most: int = 28) -> str:
    """Return a name that fits beside a plot: the middle of a long one is left out."""
    end = (most - 1) // 2
    return name if len(name) <= most else f"{name[: most - 1 - end]}…{name[-end:]}"


def save(figure: Figure, path: Path) -> None:
    """Write a plot as PNG and as SVG, both atomically.

    Args:
        figure: The plot.
        path: The path of the files, without a suffix.
    """
    for kind in ("png", "svg"):
        write_bytes(path.with_name(f"{path.name}.{kind}"), encoded(figure, kind))


def encoded(figure: Figure, kind: str) -> bytes:
    """Return the content of an image file; the same plot gives the same bytes.

    Args:
        figure: The plot.
        kind: `png` or `svg`; text in an SVG is not converted to paths.
    """
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "worldlm", "svg.fonttype": "none"}):
        figure.savefig(file, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else {})
    return file.getvalue()


def inline_svg(figure: Figure, salt: str, label: str) -> str:
    """Return a plot as an `<svg>` for an HTML page; black becomes the colour of the page's text.

    The other `COLOURS` become `var(--c0)`, `var(--c1)`, ..., with themselves as defaults. The background is
    transparent.

    Args:
        figure: The plot.
        salt: Letters, digits and hyphens that are unique among the plots of the page; all ids begin with it.
        label: A description of the plot for screen readers.
    """
    file, no_metadata = io.BytesIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the page is shown with the fonts of the reader
        warnings.filterwarnings("ignore", "constrained_layout not applied")  # names are wider than the plot
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    text = file.getvalue().decode()
    _, _, inner = text[text.index("<svg ") :].partition(">")
    inner = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", inner, count=1, flags=re.DOTALL)
    inner = re.sub(r"<[^>]+>", lambda tag: _in_page(tag[0], salt), inner)  # text between tags is unchanged
    width, height = figure.get_size_inches()
    shown = f'viewBox="0 0 {72 * width:g} {72 * height:g}" style="--width:{96 * width:.0f}px"'
    return f'<svg role="img" aria-label="{html.escape(label)}" fill="currentColor" {shown}>{inner.strip()}'


def _in_page(tag: str, salt: str) -> str:
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    tag = re.sub(r' id="[a-z_.0-9]*_\d+"', "", tag)  # ids of groups are not referenced
    tag = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{salt}-", tag)
    tag = tag.replace("#000000", "currentColor")
    for i, colour in enumerate(COLOURS):
        tag = tag.replace(colour, f"var(--c{i},{colour})")
    return tag
