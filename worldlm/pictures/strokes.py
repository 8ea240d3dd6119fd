"""Colours of all pictures, and how they become files."""

from __future__ import annotations

import io
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
