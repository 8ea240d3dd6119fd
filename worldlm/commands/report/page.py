"""The whole page: one run, or several side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from worldlm import __version__
from worldlm.commands.report import method_parts, origin_parts, results_part, side_by_side
from worldlm.commands.report.drawn import curves
from worldlm.commands.report.read import Run
from worldlm.commands.report.style import STYLE
from worldlm.commands.report.tags import NOTHING, Html, element, joined, section

PARTS: dict[str, Callable[[Run, str], Html]] = {
    "The world": method_parts.world,
    "Results": results_part.results,
    "Curves": lambda run, salt: curves([run.record], run.record.data_nodes, salt),
    "Attention": method_parts.attention,
    "Residuals": method_parts.routes,
    "Privacy": method_parts.privacy,
    "Costs": method_parts.costs,
    "Text": lambda run, salt: origin_parts.data(run),
    "Versions and machine": lambda run, salt: origin_parts.environment(run),
    "To repeat it": lambda run, salt: origin_parts.repeat(run),
}
"""What is told of a run, by heading; a part that returns nothing is left out."""


def page(runs: Sequence[Run], track: Callable[[Sequence[Run]], Iterable[Run]] = iter) -> str:
    """Return the page of one run, or of several.

    Args:
        runs: The runs, in the order in which they are to stand.
        track: Wraps the runs as they are told one by one; for a progress bar.

    Returns:
        A document of HTML that loads nothing.
    """
    if len(runs) == 1:
        (run,) = track(runs)
        where = element("p", f"{run.record.title}: {run.folder}", class_="note")
        return _document(run.record.method, joined([where, one_run(run, "r0")]))
    return _document(f"{len(runs)} runs side by side", side_by_side.several(runs, _details(track(runs))))


def one_run(run: Run, salt: str) -> Html:
    """Tell a run.

    Args:
        run: The run.
        salt: What its ids begin with.
    """
    told = {title: part(run, salt) for title, part in PARTS.items()}
    names = {title: f"{salt}-{title.lower().replace(' ', '-')}" for title, content in told.items() if content}
    links = element("nav", *(element("a", title, href=f"#{name}") for title, name in names.items()))
    sections = (section(names[title], title, told[title]) for title in names)
    return joined([results_part.unfinished(run), results_part.summary(run), links, *sections])


def _details(runs: Iterable[Run]) -> Html:
    told = [
        element("details", element("summary", run.record.title), one_run(run, f"r{i}"), class_="run", id=f"r{i}")
        for i, run in enumerate(runs)
    ]
    return joined(told) or NOTHING


def _document(title: str, content: Html) -> str:
    head = element(
        "head",
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark">'),
        element("title", f"{title} - WorldLM"),
        element("style", Html(STYLE)),
    )
    foot = element("footer", f"Written by worldlm {__version__} from results.json.")
    body = element("body", element("main", element("h1", title), content), foot)
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"
