"""Sections of a page about a run's results: a summary, and the figures of all nodes."""

from __future__ import annotations

from typing import Any

from worldlm.commands.report import metrics
from worldlm.commands.report.charts import MAX_LEAVES, picture
from worldlm.commands.report.html_tags import NOTHING, Html, element, if_long, joined, table
from worldlm.commands.report.load_runs import Run
from worldlm.commands.report.number_format import count_text, duration, epsilon, list_names, plural, score, size
from worldlm.plots.boxes import of_perplexity, shortened
from worldlm.plots.world import draw_world
from worldlm.runs.guarantees import is_useful, meanings
from worldlm.runs.results import RunRecord
from worldlm.runs.scores import far_worse, far_worse_text

MAX_ROWS = 200
"""Most rows of a table of nodes."""


def unfinished(run: Run) -> Html:
    """Return a warning if a run is not finished."""
    record = run.record
    if record.content["finished"]:
        return NOTHING
    done, wanted = record.content["rounds_done"], record.content.get("rounds_wanted")
    rounds = f"{plural(done, 'round')}{'' if wanted is None else f' of {wanted:,}'}"
    return element("p", f"Not finished: {rounds} when its results were last written.", class_="warning")


def worse(run: Run) -> Html:
    """Return a warning about nodes that are far worse than at the start, if there are any."""
    names = far_worse(run.record)
    if not names:
        return NOTHING
    text = far_worse_text(list_names(names, 12))
    return element("p", f"{text[0].upper()}{text[1:]}.", class_="warning")


def summary(run: Run) -> Html:
    """Summarise a run in a paragraph, and show its main figures."""
    record = run.record
    done, wanted = record.content["rounds_done"], record.content.get("rounds_wanted")
    nodes, levels = record.nodes, 1 + max(depth for _, depth in metrics.with_depth(record.tree))
    rounds = f"{done:,} of {wanted:,} rounds" if wanted is not None else plural(done, "round")
    sentences = [
        f"A world of {plural(len(nodes), 'node')} in {plural(levels, 'level')}, {len(record.data_nodes):,} with "
        f"text ({record.topology}), trained for {rounds} with seed {record.seed} on {metrics.tokens(record):,} tokens, "
        f"in {duration(record.content['seconds'])}.",
        _perplexities(record),
        _privacy(record),
    ]
    return joined([element("p", " ".join(filter(None, sentences))), _cards(run)])


def _perplexities(record: RunRecord) -> str:
    moment, nodes = metrics.headline(record)
    last = metrics.mean(record, nodes, moment)
    if last is None:
        return "No perplexity was evaluated."
    before, best = metrics.mean(record, nodes, "before"), metrics.mean(record, nodes, moment, best=True)
    text = f"The mean held-out perplexity over {_how_many(record, nodes)} went "
    text += f"{f'from {score(before)} ' if before else ''}to {score(last)} ({moment})"
    return text + (f"; with each node at its best round, it is {score(best)}." if best != last else ".")


def _how_many(record: RunRecord, nodes: list[str]) -> str:
    number, all_ = len(nodes), len(record.data_nodes)
    return plural(number, "data node") if number == all_ else f"{number:,} of {plural(all_, 'data node')}"


def _privacy(record: RunRecord) -> str:
    found = metrics.accounts(record)
    if not found:
        return "It has no differential privacy."
    names = list(dict.fromkeys(account.node for account in found if account.spent))
    if not names:
        return "Nodes have privacy settings, and no epsilon was spent yet."
    explained = " ".join(f"{line}." for line in meanings(record.nodes))
    largest = f"The largest epsilon that a node has spent is {epsilon(record.epsilon)} (private: {list_names(names)})."
    return f"{largest} {explained}"


def _cards(run: Run) -> Html:
    record = run.record
    moment, nodes = metrics.headline(record)
    last = metrics.mean(record, nodes, moment)
    bits = metrics.mean(record, nodes, moment, "bits_per_byte")
    nodes_text = f"{moment}, mean over {_how_many(record, nodes)}"
    cards = [
        ("perplexity", score(last), nodes_text),
        ("bits per byte", score(bits), nodes_text),
        ("rounds", f"{record.content['rounds_done']:,}", "of the world"),
        ("tokens", count_text(metrics.tokens(record)), "trained on, all nodes"),
        ("traffic", size(metrics.moved(record)), "over all edges, both ways"),
        ("time", duration(record.content["seconds"]), "sum of all starts"),
    ]
    if record.rounds and any(account.spent for account in metrics.accounts(record)):
        weak = [] if is_useful(record.epsilon) else ["protects little or nothing"]
        note = "; ".join(["the largest of any node", *weak, *meanings(record.nodes)])
        cards.append(("epsilon", epsilon(record.epsilon), note))
    items = (
        element("li", element("span", name), element("strong", value), element("small", note))
        for name, value, note in cards
        if value
    )
    return element("ul", *items, class_="cards")


def results(run: Run, salt: str) -> Html:
    """Show the perplexity of every node in the tree, and all figures in a table."""
    if not run.has_rounds:
        return element("p", "No round is finished yet, so there are no results.")
    return joined(
        [
            _perplexity_picture(run.record, salt),
            node_table(run.record),
            element("p", *_LEGEND, class_="note"),
        ]
    )


def _perplexity_picture(record: RunRecord, salt: str) -> Html:
    box = shortened(of_perplexity(record), MAX_LEAVES)
    if not any(child.lines for child in box.walk() if child.name):
        return NOTHING
    note = "The lower a node's perplexity, the stronger its colour; nodes far worse than at the start have none."
    return joined([element("p", note), picture(lambda: draw_world(box), f"{salt}-scores", "perplexity of every node")])


def node_table(record: RunRecord) -> Html:
    """Return a table of all nodes' figures after the last round."""
    nodes = list(metrics.with_depth(record.tree))
    rows = [_row(record, node, depth) for node, depth in nodes[:MAX_ROWS]]
    num_left = len(nodes) - len(rows)
    more = element("p", f"And {num_left:,} more nodes, in results.json.") if num_left else NOTHING
    return if_long("All nodes", len(rows), joined([table(_COLUMNS, rows, words=[1]), more]))


_COLUMNS = ("node", "corpus", "before", "received", "after_merge", "after_fit", "best after_fit", "bits per byte",
            "tokens", "passes", "MB down", "MB up", "missed", "refused", "epsilon", "epsilon (examples)")  # fmt: skip

_LEGEND = (
    "Perplexity per token on held-out text. before: the initial weights. received: the model that the parent ",
    "sent, or for a federation the mean over the nodes below. after_merge: the node's own model when it has merged ",
    "what it received. after_fit: after its own steps. best after_fit: of the round in which it was ",
    "lowest. Bits per byte are after_fit, or after_merge for a federation. MB are from and to the parent.",
)


def _row(record: RunRecord, node: dict[str, Any], depth: int) -> list[str]:
    name = node["name"]
    figures = record.round()["nodes"].get(name, {})
    bits = record.last(name, "after_fit", "bits_per_byte")
    megabytes = [f"{figures[way] / 1e6:,.1f}" if way in figures else "" for way in ("bytes_down", "bytes_up")]
    return [
        element("span", name, style=f"--depth:{depth}"),
        "" if node["corpus"] in (None, name) else node["corpus"],
        score(record.last(name, "before")),
        score(record.last(name, "received")),
        score(record.last(name, "after_merge")),
        score(record.last(name, "after_fit")),
        score(record.best(name, "after_fit")),
        score(record.last(name, "after_merge", "bits_per_byte") if bits is None else bits),
        count_text(figures.get("tokens")),
        f"{figures['passes']:,.2f}" if "passes" in figures else "",
        *megabytes,
        count_text(figures.get("missed")),
        count_text(figures.get("refused")),
        *(epsilon(figures[kind]) if kind in figures else "" for kind in metrics.KIND_NAMES),
    ]
