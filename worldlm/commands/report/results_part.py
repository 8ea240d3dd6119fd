"""What a run came to: its summary, and its figures by node."""

from __future__ import annotations

from typing import Any

from worldlm.commands.report import numbers
from worldlm.commands.report.drawn import MOST_LEAVES, picture
from worldlm.commands.report.read import Run
from worldlm.commands.report.tags import NOTHING, Html, element, if_long, joined, table
from worldlm.commands.report.words import duration, epsilon, listed, plural, score, size, whole
from worldlm.plots.boxes import of_perplexity, shortened
from worldlm.plots.world import draw_world
from worldlm.runs.results import RunRecord

MAX_ROWS = 200
"""Nodes that a table shows."""


def unfinished(run: Run) -> Html:
    """Say that a run is not finished; nothing of one that is."""
    record = run.record
    if record.content["finished"]:
        return NOTHING
    done, wanted = record.content["rounds_done"], record.content.get("rounds_wanted")
    told = (
        f"Not finished: {plural(done, 'round')}{'' if wanted is None else f' of {wanted:,}'} when it was last written."
    )
    return element("p", told, class_="warning")


def summary(run: Run) -> Html:
    """Tell a run in a paragraph, and its main figures in large."""
    record = run.record
    done, wanted = record.content["rounds_done"], record.content.get("rounds_wanted")
    nodes, levels = record.nodes, 1 + max(depth for _, depth in numbers.with_depth(record.tree))
    rounds = f"{done:,} of {wanted:,} rounds" if wanted is not None else plural(done, "round")
    told = [
        f"A world of {plural(len(nodes), 'node')} in {plural(levels, 'level')}, {len(record.data_nodes):,} with "
        f"text ({record.topology}), trained for {rounds} with seed {record.seed} on {numbers.tokens(record):,} tokens, "
        f"in {duration(record.content['seconds'])}.",
        _perplexities(record),
        _privacy(record),
    ]
    return joined([element("p", " ".join(filter(None, told))), _cards(run)])


def _perplexities(record: RunRecord) -> str:
    moment, nodes = numbers.headline(record)
    last = numbers.mean(record, nodes, moment)
    if last is None:
        return "No perplexity was measured."
    before, best = numbers.mean(record, nodes, "before"), numbers.mean(record, nodes, moment, best=True)
    told = f"The mean held-out perplexity over {plural(len(nodes), 'data node')} went "
    told += f"{f'from {score(before)} ' if before else ''}to "
    told += f"{score(last)} ({moment})"
    return told + (f"; at best, each node at its own round, it was {score(best)}." if best != last else ".")


def _privacy(record: RunRecord) -> str:
    found = numbers.accounts(record)
    if not found:
        return "Nothing in it is private."
    names = list(dict.fromkeys(one.node for one in found if one.spent))
    if not names:
        return "Privacy is asked for, and nothing was spent of it yet."
    return f"The largest epsilon that a node has spent is {epsilon(record.epsilon)} (private: {listed(names)})."


def _cards(run: Run) -> Html:
    record = run.record
    moment, nodes = numbers.headline(record)
    last = numbers.mean(record, nodes, moment)
    bits = numbers.mean(record, nodes, moment, "bits_per_byte")
    over = f"{moment}, mean over {plural(len(nodes), 'data node')}"
    cards = [
        ("perplexity", score(last), over),
        ("bits per byte", score(bits), over),
        ("rounds", f"{record.content['rounds_done']:,}", "of the world"),
        ("tokens", whole(numbers.tokens(record)), "trained on, all nodes"),
        ("moved", size(numbers.moved(record)), "over all edges, both ways"),
        ("time", duration(record.content["seconds"]), "of all starts together"),
    ]
    if record.rounds and any(one.spent for one in numbers.accounts(record)):
        cards.append(("epsilon", epsilon(record.epsilon), "the largest of any node"))
    told = (
        element("li", element("span", name), element("strong", value), element("small", what))
        for name, value, what in cards
        if value
    )
    return element("ul", *told, class_="cards")


def results(run: Run, salt: str) -> Html:
    """Show perplexities in the tree, and all figures by node."""
    if not run.has_rounds:
        return element("p", "No round was finished yet, so there are no results.")
    return joined(
        [
            _perplexity_picture(run.record, salt),
            node_table(run.record),
            element("p", *_LEGEND, class_="note"),
        ]
    )


def _perplexity_picture(record: RunRecord, salt: str) -> Html:
    box = shortened(of_perplexity(record), MOST_LEAVES)
    if not any(one.lines for one in box.walk() if one.name):
        return NOTHING
    told = "The better a node predicts held-out text, the stronger its colour."
    return joined([element("p", told), picture(lambda: draw_world(box), f"{salt}-scores", "perplexity of every node")])


def node_table(record: RunRecord) -> Html:
    """Return all figures by node, after the last round."""
    nodes = list(numbers.with_depth(record.tree))
    rows = [_row(record, node, depth) for node, depth in nodes[:MAX_ROWS]]
    left = len(nodes) - len(rows)
    more = element("p", f"And {left:,} more nodes, in results.json.") if left else NOTHING
    return if_long("All nodes", len(rows), joined([table(_COLUMNS, rows, words=[1]), more]))


_COLUMNS = ("node", "corpus", "before", "after_merge", "after_fit", "best after_fit", "bits per byte", "tokens",
            "passes", "MB down", "MB up", "missed", "refused", "epsilon", "epsilon (examples)")  # fmt: skip

_LEGEND = (
    "Perplexity per token on held-out text: before, as all nodes started; after_merge, as its federation made the ",
    "node; after_fit, after its own steps; best after_fit, at the round in which it was lowest; bits per byte of the ",
    "last after_fit, of a federation after_merge. Passes over its own text; MB from and to its parent.",
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
        score(record.last(name, "after_merge")),
        score(record.last(name, "after_fit")),
        score(record.best(name, "after_fit")),
        score(record.last(name, "after_merge", "bits_per_byte") if bits is None else bits),
        whole(figures.get("tokens")),
        f"{figures['passes']:,.2f}" if "passes" in figures else "",
        *megabytes,
        whole(figures.get("missed")),
        whole(figures.get("refused")),
        *(epsilon(figures[kind]) if kind in figures else "" for kind in numbers.KIND_NAMES),
    ]
