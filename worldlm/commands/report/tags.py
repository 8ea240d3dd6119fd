"""HTML as values: what is text is escaped, what is `Html` was built here."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


NOTHING = Html()
LONG = 40
"""Rows of a table that is shown at once."""


def element(name: str, *content: str, **attributes: str) -> Html:
    """Return an element.

    Args:
        name: Its tag.
        content: What it holds; all but `Html` is escaped.
        attributes: Its attributes; `class_` is `class`.
    """
    told = "".join(f' {key.rstrip("_")}="{html.escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{told}>{joined(content)}</{name}>")


def joined(content: Iterable[str]) -> Html:
    """Return several pieces one after the other; all but `Html` is escaped."""
    return Html("".join(one if isinstance(one, Html) else html.escape(one) for one in content))


def section(name: str, title: str, *content: str) -> Html:
    """Return a part of the page with a heading; nothing where it holds nothing.

    Args:
        name: Its id.
        title: Its heading.
        content: What it holds.
    """
    return element("section", element("h2", title), *content, id=name) if any(content) else NOTHING


def folded(title: str, *content: str) -> Html:
    """Return what is shown on demand; nothing where it holds nothing."""
    return element("details", element("summary", title), *content) if any(content) else NOTHING


def if_long(title: str, num_rows: int, content: Html) -> Html:
    """Fold a table that one would have to scroll past."""
    return folded(f"{title} ({num_rows:,} rows)", content) if num_rows > LONG else content


def code(text: str) -> Html:
    """Return lines to be copied."""
    return element("pre", element("code", text), tabindex="0")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], words: Iterable[int] = ()) -> Html:
    """Return a table that scrolls where it is wider than the page; a column in which no row has anything is left out.

    Args:
        headings: Of its columns; the first names the rows.
        rows: Cells, "" for none.
        words: Columns, from 0, that hold words and begin at the left; the first always does.
    """
    shown = [i for i in range(len(headings)) if i == 0 or any(row[i] for row in rows)]
    left = {0, *words}

    def line(cells: Sequence[str], tag: str) -> Html:
        looks = [{"class_": "words"} if i in left else {} for i in shown]
        first = element("th", cells[0], scope="row" if tag == "td" else "col", class_="words")
        rest = (element(tag, cells[i], **look) for i, look in zip(shown[1:], looks[1:], strict=True))
        return element("tr", first, *rest)

    head, body = element("thead", line(headings, "th")), element("tbody", *(line(row, "td") for row in rows))
    return element("div", element("table", head, body), class_="wide", tabindex="0") if rows else NOTHING


def facts(pairs: Iterable[tuple[str, str]]) -> Html:
    """Return names and values, a line each; those without a value are left out."""
    told = [joined([element("dt", name), element("dd", value)]) for name, value in pairs if value]
    return element("dl", *told) if told else NOTHING
