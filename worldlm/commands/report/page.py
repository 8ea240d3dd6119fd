"""The HTML page about one run, or about several side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from worldlm import __version__
from worldlm.commands.report import comparison, method_sections, provenance_sections, results_sections
from worldlm.commands.report.charts import curves
from worldlm.commands.report.html_tags import NOTHING, Html, element, joined, section
from worldlm.commands.report.load_runs import Run
from worldlm.commands.report.stylesheet import STYLE

SECTIONS: dict[str, Callable[[Run, str], Html]] = {
    "The world": method_sections.world,
    "Results": results_sections.results,
    "Curves": lambda run, salt: curves([run.record], run.record.data_nodes, salt),
    "Attention": method_sections.attention,
    "Residuals": method_sections.routes,
    "Privacy": method_sections.privacy,
    "Costs": method_sections.costs,
    "Text": lambda run, salt: provenance_sections.data(run),
    "Versions and machine": lambda run, salt: provenance_sections.environment(run),
    "To repeat it": lambda run, salt: provenance_sections.repeat(run),
}
"""The sections about a run, by heading. A section that returns nothing is left out."""


def page(runs: Sequence[Run], track: Callable[[Sequence[Run]], Iterable[Run]] = iter) -> str:
    """Return the page of one run, or of several.

    Args:
        runs: The runs, in the order of the page.
        track: Wraps the runs, for a progress bar.

    Returns:
        An HTML document that loads no other file.
    """
    if len(runs) == 1:
        (run,) = track(runs)
        where = element("p", f"{run.record.title}: {run.folder}", class_="note")
        return _document(run.record.method, joined([where, run_sections(run, "r0")]))
    return _document(f"{len(runs)} runs side by side", comparison.several(runs, _details(track(runs))))


def run_sections(run: Run, salt: str) -> Html:
    """Return the sections about a run.

    Args:
        run: The run.
        salt: Prefix of its ids.
    """
    contents = {title: show(run, salt) for title, show in SECTIONS.items()}
    names = {title: f"{salt}-{title.lower().replace(' ', '-')}" for title, content in contents.items() if content}
    links = element(
        "nav",
        *(element("a", title, href=f"#{name}") for title, name in names.items()),
        **{"aria-label": run.record.title},
    )
    sections = (section(names[title], title, contents[title]) for title in names)
    return joined(
        [results_sections.unfinished(run), results_sections.worse(run), results_sections.summary(run), links, *sections]
    )


def _details(runs: Iterable[Run]) -> Html:
    details = [
        element("details", element("summary", run.record.title), run_sections(run, f"r{i}"), class_="run", id=f"r{i}")
        for i, run in enumerate(runs)
    ]
    return joined(details) or NOTHING


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
