"""The files and commands that a tutorial shows."""

from __future__ import annotations

import re
from pathlib import Path

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a tutorial in a language."""
    text = (TUTORIALS / f"{page}.md").read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def files_of(page: str) -> dict[str, str]:
    """Return the content of each file of a tutorial by its name, which its first line states."""
    shown = (*blocks(page, "yaml"), *blocks(page, "python"))
    return {re.match(r"# (\S+)", text)[1]: text for text in shown}  # type: ignore[index]
