"""Several runs beside one another: what they came to, whether that can be compared, and what differs between them."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from worldlm.commands.compare.comparable import check
from worldlm.commands.compare.figures import by_megabytes, by_noise
from worldlm.commands.compare.records import by_method, common_nodes
from worldlm.commands.compare.table import LEGEND, cells, rows
from worldlm.commands.report import numbers
from worldlm.commands.report.drawn import INCHES, curves, legend, picture
from worldlm.commands.report.read import Run
from worldlm.commands.report.settings import flat_settings
from worldlm.commands.report.tags import NOTHING, Html, element, joined, section, table
from worldlm.commands.report.words import duration, epsilon, listed, plural, score, size, whole
from worldlm.plots.boxes import MAX_ROWS
from worldlm.runs.results import RunRecord

MAX_NODES = 12
"""Nodes that have a column in the table of methods."""
MAX_METHODS = 12
"""Methods whose settings are compared."""


def several(runs: Sequence[Run], details: Html) -> Html:
    """Tell several runs.

    Args:
        runs: The runs.
        details: All that is told of each, below.
    """
    records = [one.record for one in runs if one.has_rounds]
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
    records = [one.record for one in runs]
    methods, seeds = list(by_method(records)), sorted({one.seed for one in records})
    trees = list(dict.fromkeys(one.topology for one in records))
    told = f"{plural(len(methods), 'method')} ({listed(methods, 12)}), {'seeds' if len(seeds) > 1 else 'seed'} "
    told += f"{listed([str(one) for one in seeds], 12)}, on {listed(trees)}."
    return element("p", told)


def _warning(runs: Sequence[Run]) -> Html:
    open_ = [one.record.title for one in runs if not one.record.content["finished"]]
    return element("p", f"Not finished: {listed(open_, 12)}.", class_="warning") if open_ else NOTHING


def _methods(records: Sequence[RunRecord]) -> Html:
    headings, lines = cells(rows(records))
    hidden = set(common_nodes(records)[MAX_NODES:])
    shown = [i for i, heading in enumerate(headings) if heading not in hidden]
    told = table([headings[i] for i in shown], [[line[i] for i in shown] for line in lines])
    return joined([told, element("p", " ".join(LEGEND), class_="note")])


def _runs(runs: Sequence[Run], nodes: Sequence[str]) -> Html:
    headings = ("run", "topology", "rounds", "after_merge", "after_fit", "best after_fit", "tokens", "moved", "epsilon",
                "time")  # fmt: skip
    lines = [_run(run, f"r{i}", nodes) for i, run in enumerate(runs)]
    if len({one.record.topology for one in runs}) == 1:
        lines = [[line[0], "", *line[2:]] for line in lines]
    note = "Perplexities are means over the data nodes that all runs have."
    return joined([table(headings, lines, words=[1]), element("p", note, class_="note") if nodes else NOTHING])


def _run(run: Run, name: str, nodes: Sequence[str]) -> list[str]:
    record = run.record
    done, wanted = record.content["rounds_done"], record.content.get("rounds_wanted")
    private = run.has_rounds and any(one.spent for one in numbers.accounts(record))
    return [
        element("a", record.title, href=f"#{name}"),
        record.topology,
        f"{done:,}" if wanted in (None, done) else f"{done:,} of {wanted:,}",
        score(numbers.mean(record, nodes, "after_merge")),
        score(numbers.mean(record, nodes, "after_fit")),
        score(numbers.mean(record, nodes, "after_fit", best=True)),
        whole(numbers.tokens(record)),
        size(numbers.moved(record)),
        epsilon(record.epsilon) if private else "",
        duration(record.content["seconds"]),
    ]


def _checks(records: Sequence[RunRecord]) -> Html:
    told = (
        element("li", element("b", "yes" if one.good else "NO"), one.text, class_="yes" if one.good else "no")
        for one in check(records)
    )
    return element("ul", *told, class_="checks")


def _curves(records: Sequence[RunRecord], nodes: Sequence[str]) -> Html:
    parts = [legend(list(by_method(records))), curves(records, nodes, "all")]
    if any(any(one.megabytes().values()) for one in records):
        parts.append(picture(lambda: _bare(by_megabytes(records, INCHES)), "all-traffic", "perplexity by traffic"))
    if any(one.noise_multiplier is not None for one in records):
        parts.append(picture(lambda: by_noise(records, INCHES), "all-noise", "perplexity by noise"))
    return joined(parts)


def _bare(figure: Figure) -> Figure:
    """Take a picture's own legend away, for the page has one."""
    figure.legends.clear()
    return figure


# ---------------------------------------------------------------------- settings


def _differences(runs: Sequence[Run]) -> Html:
    """Show the settings in which methods differ, by the first run of each."""
    groups = by_method([one.record for one in runs])
    config = {id(one.record): one.config for one in runs}
    known = {method: text for method, group in groups.items() if (text := config[id(group[0])]) is not None}
    flat = {method: settings for method, text in known.items() if (settings := flat_settings(text)) is not None}
    if len(flat) < 2:
        return NOTHING
    methods = list(flat)[:MAX_METHODS]
    keys = dict.fromkeys(key for method in methods for key in flat[method])
    differing = [key for key in keys if len({flat[method].get(key) for method in methods}) > 1]
    if not differing:
        return element("p", "Their settings are the same, but for seeds and folders.")
    lines = [[key, *(flat[method].get(key, "") for method in methods)] for key in differing[: 2 * MAX_ROWS]]
    note = "Settings of config.yaml that are not alike, by the first run of each method."
    if len(flat) > len(methods):
        note += f" The first {len(methods)} of {len(flat)} methods."
    return joined([element("p", note), table(["setting", *methods], lines, words=range(1, len(methods) + 1))])
