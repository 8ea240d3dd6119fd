"""Builds HTML. Text is escaped unless it is `Html`, which this module returns."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


class Html(str):
    """Text that is HTML, and is not escaped again."""

    __slots__ = ()


NOTHING = Html()
LONG = 40
"""Most rows of a table that is not folded."""


def element(name: str, *content: str, **attributes: str) -> Html:
    """Return an element.

    Args:
        name: Its tag.
        content: Its content; text is escaped.
        attributes: Its attributes; `class_` is `class`.
    """
    attribute_text = "".join(f' {key.rstrip("_")}="{html.escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{attribute_text}>{joined(content)}</{name}>")


def joined(content: Iterable[str]) -> Html:
    """Join several parts; text is escaped."""
    return Html("".join(part if isinstance(part, Html) else html.escape(part) for part in content))


def section(name: str, title: str, *content: str) -> Html:
    """Return a section with a heading; nothing without content.

    Args:
        name: Its id.
        title: Its heading.
        content: Its content.
    """
    return element("section", element("h2", title), *content, id=name) if any(content) else NOTHING


def folded(title: str, *content: str) -> Html:
    """Return content that the reader unfolds; nothing without content."""
    return element("details", element("summary", title), *content) if any(content) else NOTHING


def if_long(title: str, num_rows: int, content: Html) -> Html:
    """Fold the content of a long table."""
    return folded(f"{title} ({num_rows:,} rows)", content) if num_rows > LONG else content


def code(text: str) -> Html:
    """Return preformatted text."""
    return element("pre", element("code", text), tabindex="0")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], words: Iterable[int] = ()) -> Html:
    """Return a table, which scrolls if it is wider than the page. Empty columns are left out.

    Args:
        headings: The headings of the columns. The first column names the rows.
        rows: The cells, "" for an empty one.
        words: Columns, from 0, that are aligned to the left; the first always is.
    """
    shown = [i for i in range(len(headings)) if i == 0 or any(row[i] for row in rows)]
    left = {0, *words}

    def line(cells: Sequence[str], tag: str) -> Html:
        styles = [{"class_": "words"} if i in left else {} for i in shown]
        first = element("th", cells[0], scope="row" if tag == "td" else "col", class_="words")
        rest = (element(tag, cells[i], **style) for i, style in zip(shown[1:], styles[1:], strict=True))
        return element("tr", first, *rest)

    head, body = element("thead", line(headings, "th")), element("tbody", *(line(row, "td") for row in rows))
    return element("div", element("table", head, body), class_="wide", tabindex="0") if rows else NOTHING


def warning(*lines: str) -> Html:
    """Return a paragraph that stands out; nothing without lines."""
    return (
        element("p", " ".join(f"{line[:1].upper()}{line[1:]}." for line in lines), class_="warning")
        if lines
        else NOTHING
    )


def facts(pairs: Iterable[tuple[str, str]]) -> Html:
    """Return names and values, one line each; names without a value are left out."""
    lines = [joined([element("dt", name), element("dd", value)]) for name, value in pairs if value]
    return element("dl", *lines) if lines else NOTHING
