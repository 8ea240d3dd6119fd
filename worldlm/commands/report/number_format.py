"""Formats the numbers of a report."""

from __future__ import annotations

import math

from worldlm.runs.scores import score_text


def score(value: float | None) -> str:
    """Format a perplexity or bits per byte."""
    return "" if value is None else score_text(value)


def count_text(value: float | None) -> str:
    """Format a count."""
    return "" if value is None else f"{value:,.0f}"


def setting(value: float | None) -> str:
    """Format the value of a setting."""
    return "" if value is None else f"{value:g}"


def epsilon(value: float | None) -> str:
    """Format an epsilon that was spent; None means unbounded."""
    return "no bound" if value is None or math.isinf(value) else f"{value:,.2f}"


def size(num_bytes: float) -> str:
    """Format a number of bytes."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:,.1f} {unit}"
    return f"{num_bytes:,.0f} bytes"


def duration(seconds: float) -> str:
    """Format a time."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


def plural(number: int, noun: str) -> str:
    """Format a number with a noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def list_names(names: list[str], most: int = 6) -> str:
    """List names; of many, the first and the number of the others."""
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most:,} more"
