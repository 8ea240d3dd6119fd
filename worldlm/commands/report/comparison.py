"""Sections of a page about several runs: their results, whether they are comparable, and how they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from worldlm.commands.compare.checks import check
from worldlm.commands.compare.plots import by_megabytes, by_noise
from worldlm.commands.compare.records import by_method, common_nodes
from worldlm.commands.compare.table import cells, rows
from worldlm.commands.compare.table import legend as table_legend
from worldlm.commands.report import metrics
from worldlm.commands.report.charts import INCHES, curves, legend, picture
from worldlm.commands.report.html_tags import NOTHING, Html, element, joined, section, table, warning
from worldlm.commands.report.load_runs import Run
from worldlm.commands.report.number_format import count_text, duration, epsilon, list_names, plural, score, size
from worldlm.commands.report.settings import flat_settings
from worldlm.plots.boxes import MAX_ROWS
from worldlm.runs.guarantees import meanings, warnings
from worldlm.runs.results import MOMENTS, Moment, RunRecord
from worldlm.runs.scores import scored

MAX_NODES = 12
"""Most nodes that have a column in the table of methods."""
MAX_METHODS = 12
"""Most methods whose settings are compared."""


def several(runs: Sequence[Run], details: Html) -> Html:
    """Return the sections about several runs.

    Args:
        runs: The runs.
        details: The sections about each run, which follow.
    """
    records = [run.record for run in runs if run.has_rounds]
    nodes = common_nodes(records) if records else []
    parts = {
        "Methods": _methods(records) if nodes else NOTHING,
        "Runs": _runs(runs, nodes),
        "Comparable?": _checks(records) if nodes else element("p", "The runs have no data node in common."),
        "Curves": _curves(records, nodes) if nodes else NOTHING,
        "What differs": _differences(runs),
        "Run by run": details,
    }
    names = {title: title.lower().rstrip("?").replace(" ", "-") for title, content in parts.items() if content}
    links = element("nav", *(element("a", title, href=f"#{name}") for title, name in names.items()))
    sections = (section(names[title], title, parts[title]) for title in names)
    return joined([_warning(runs), _summary(runs), links, *sections])


def _summary(runs: Sequence[Run]) -> Html:
    records = [run.record for run in runs]
    methods, seeds = list(by_method(records)), sorted({record.seed for record in records})
    topologies = list(dict.fromkeys(record.topology for record in records))
    text = f"{plural(len(methods), 'method')} ({list_names(methods, 12)}), {'seeds' if len(seeds) > 1 else 'seed'} "
    text += f"{list_names(list(map(str, seeds)), 12)}, on {list_names(topologies)}."
    return element("p", text)


def _warning(runs: Sequence[Run]) -> Html:
    titles = [run.record.title for run in runs if not run.record.content["finished"]]
    return warning(f"not finished: {list_names(titles, 12)}") if titles else NOTHING


def _methods(records: Sequence[RunRecord]) -> Html:
    headings, lines = cells(rows(records))
    hidden = set(common_nodes(records)[MAX_NODES:])
    shown = [i for i, heading in enumerate(headings) if heading not in hidden]
    methods = table([headings[i] for i in shown], [[line[i] for i in shown] for line in lines])
    return joined([methods, element("p", " ".join(table_legend(records)), class_="note")])


def _runs(runs: Sequence[Run], nodes: Sequence[str]) -> Html:
    perplexities = ("after_merge", "after_fit", "best after_fit")
    headings = ("run", "topology", "rounds", *perplexities, "tokens", "traffic", "epsilon", "time")
    having = {moment: scored([run.record for run in runs], nodes, moment) for moment in MOMENTS}
    lines = [_run(run, f"r{i}", having) for i, run in enumerate(runs)]
    if len({run.record.topology for run in runs}) == 1:
        lines = [[line[0], "", *line[2:]] for line in lines]
    note = "Perplexities are means over the same data nodes as above. Epsilon is the largest of any node"
    explained = dict.fromkeys(line for run in runs for line in meanings(run.record.nodes))
    note += "".join(f"; {line}" for line in explained) + "."
    epsilons = [(run.record.title, run.record.epsilon) for run in runs if run.has_rounds]
    weak = warning(*warnings((title, spent) for title, spent in epsilons if spent is not None))
    return joined([table(headings, lines, words=[1]), weak, element("p", note, class_="note") if nodes else NOTHING])


def _run(run: Run, name: str, having: Mapping[Moment, Sequence[str]]) -> list[str]:
    record = run.record
    done, wanted = record.content["rounds_done"], record.content.get("rounds_wanted")
    private = run.has_rounds and any(account.spent for account in metrics.accounts(record))
    return [
        element("a", record.title, href=f"#{name}"),
        record.topology,
        f"{done:,}" if wanted in (None, done) else f"{done:,} of {wanted:,}",
        *(score(metrics.mean(record, having[moment], moment)) for moment in MOMENTS),
        score(metrics.mean(record, having["after_fit"], "after_fit", best=True)),
        count_text(metrics.tokens(record)),
        size(metrics.moved(record)),
        epsilon(record.epsilon) if private else "",
        duration(record.content["seconds"]),
    ]


def _checks(records: Sequence[RunRecord]) -> Html:
    items = (
        element("li", element("b", "yes" if found.good else "NO"), found.text, class_="yes" if found.good else "no")
        for found in check(records)
    )
    return element("ul", *items, class_="checks")


def _curves(records: Sequence[RunRecord], nodes: Sequence[str]) -> Html:
    parts = [legend(list(by_method(records))), curves(records, nodes, "all")]
    if any(any(record.megabytes().values()) for record in records):
        parts.append(
            picture(lambda: _without_legend(by_megabytes(records, INCHES)), "all-traffic", "perplexity by traffic")
        )
    if any(record.noise_multiplier is not None for record in records):
        parts.append(picture(lambda: by_noise(records, INCHES), "all-noise", "perplexity by noise"))
    return joined(parts)


def _without_legend(figure: Figure) -> Figure:
    """Remove a picture's legend, because the page has one."""
    figure.legends.clear()
    return figure


# ---------------------------------------------------------------------- settings


def _differences(runs: Sequence[Run]) -> Html:
    """Show the settings in which the methods' first runs differ."""
    groups = by_method([run.record for run in runs])
    config = {id(run.record): run.config for run in runs}
    known = {method: text for method, group in groups.items() if (text := config[id(group[0])]) is not None}
    flat = {method: settings for method, text in known.items() if (settings := flat_settings(text)) is not None}
    if len(flat) < 2:
        return NOTHING
    methods = list(flat)[:MAX_METHODS]
    keys = dict.fromkeys(key for method in methods for key in flat[method])
    differing = [key for key in keys if len({flat[method].get(key) for method in methods}) > 1]
    if not differing:
        return element("p", "Their settings are the same, except seeds and folders.")
    lines = [[key, *(flat[method].get(key, "") for method in methods)] for key in differing[: 2 * MAX_ROWS]]
    note = "Settings in config.yaml that differ between the first runs of the methods."
    if len(flat) > len(methods):
        note += f" The first {len(methods)} of {len(flat)} methods."
    return joined([element("p", note), table(["setting", *methods], lines, words=range(1, len(methods) + 1))])
