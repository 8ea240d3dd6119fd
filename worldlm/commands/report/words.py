"""How a report writes numbers."""

from __future__ import annotations

import math

from worldlm.plots.boxes import figure


def score(value: float | None) -> str:
    """Write a perplexity or bits per byte."""
    return "" if value is None else figure(value)


def whole(value: float | None) -> str:
    """Write a count."""
    return "" if value is None else f"{value:,.0f}"


def plain(value: float | None) -> str:
    """Write a setting, as short as it can be read back."""
    return "" if value is None else f"{value:g}"


def epsilon(value: float | None) -> str:
    """Write an epsilon that was spent; None is one without a bound."""
    return "no bound" if value is None or math.isinf(value) else f"{value:,.2f}"


def size(num_bytes: float) -> str:
    """Write a number of bytes, in the unit that suits."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:,.1f} {unit}"
    return f"{num_bytes:,.0f} bytes"


def duration(seconds: float) -> str:
    """Write a time."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


def plural(number: int, one: str, more: str | None = None) -> str:
    """Write a number with what it counts."""
    return f"{number:,} {one if number == 1 else more or f'{one}s'}"


def listed(names: list[str], most: int = 6) -> str:
    """Write names, of many the first."""
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most:,} more"
