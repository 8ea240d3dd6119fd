"""The files that the tutorial about two organisations shows."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "two_organisations.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)


def files_of_the_tutorial() -> dict[str, str]:
    """Return the content of each file by its name, which its first line states."""
    return {re.match(r"# (\S+)", text)[1]: text for text in (*blocks("yaml"), *blocks("python"))}  # type: ignore[index]
