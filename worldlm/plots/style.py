"""Colours of all pictures, and how they become files."""

from __future__ import annotations

import html
import io
import re
import warnings
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c8c8c")
"""By Okabe and Ito: told apart whatever colours one sees."""
INCHES, DPI = 10.0, 120
"""Width of a picture with axes: 1200 pixels."""


def save(figure: Figure, path: Path) -> None:
    """Write a picture as PNG and as SVG.

    Args:
        figure: The picture.
        path: Where to, without a suffix.
    """
    path.with_name(f"{path.name}.png").write_bytes(encoded(figure, "png"))
    path.with_name(f"{path.name}.svg").write_bytes(encoded(figure, "svg"))


def encoded(figure: Figure, kind: str) -> bytes:
    """Return a picture as a file's content, the same bytes for the same picture.

    Args:
        figure: The picture.
        kind: `png` or `svg`; text in the latter stays text.
    """
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "worldlm", "svg.fonttype": "none"}):
        figure.savefig(file, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else {})
    return file.getvalue()


def inline_svg(figure: Figure, salt: str, label: str) -> str:
    """Return a picture as an `<svg>` to stand in a page, in the colours of the page: black is its text's colour.

    The other `COLOURS` are `var(--c0)`, `var(--c1)`, ..., by default as they are, and the background is the page's.

    Args:
        figure: The picture.
        salt: Letters, digits and hyphens that no other picture of the page has; all ids begin with it.
        label: What it shows, for those who do not see it.
    """
    file, nothing = io.BytesIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's fonts are used, not ours
        warnings.filterwarnings("ignore", "constrained_layout not applied")  # names longer than the picture is wide
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue().decode()
    _, _, inner = text[text.index("<svg ") :].partition(">")
    inner = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", inner, count=1, flags=re.DOTALL)
    inner = re.sub(r"<[^>]+>", lambda tag: _in_page(tag[0], salt), inner)  # text between tags stays as it is
    width, height = figure.get_size_inches()
    shown = f'viewBox="0 0 {72 * width:g} {72 * height:g}" style="--width:{96 * width:.0f}px"'
    return f'<svg role="img" aria-label="{html.escape(label)}" fill="currentColor" {shown}>{inner.strip()}'


def _in_page(tag: str, salt: str) -> str:
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    tag = re.sub(r' id="[a-z_.0-9]*_\d+"', "", tag)  # of groups, which nothing refers to
    tag = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{salt}-", tag)
    tag = tag.replace("#000000", "currentColor")
    for i, colour in enumerate(COLOURS):
        tag = tag.replace(colour, f"var(--c{i},{colour})")
    return tag
