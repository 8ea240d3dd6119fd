"""What a run's method did: its world, attention, residuals, privacy, and what all that cost."""

from __future__ import annotations

from worldlm.commands.report import numbers
from worldlm.commands.report.drawn import INCHES, MOST_LEAVES, picture
from worldlm.commands.report.read import Run
from worldlm.commands.report.tags import NOTHING, Html, element, facts, folded, if_long, joined, table
from worldlm.commands.report.words import duration, epsilon, plain, size, whole
from worldlm.plots.boxes import of_names, of_settings, of_traffic, shortened
from worldlm.plots.budget import budget
from worldlm.plots.heatmaps import attention as attention_picture
from worldlm.plots.world import draw_world
from worldlm.runs.results import RunRecord

DROPPED = "dropped"
"""Where residuals went that found no home."""


def world(run: Run, salt: str) -> Html:
    """Show the tree and what holds at every node."""
    box = shortened(of_settings(run.record), MOST_LEAVES)
    told = "The root on the left, every federation in a frame; a setting stands where it begins to hold."
    shown = any(one.lines for one in box.walk() if one.name)
    return joined(
        [
            element("p", told if shown else "The root on the left, every federation in a frame."),
            picture(lambda: draw_world(box), f"{salt}-world", f"topology {run.record.topology}"),
        ]
    )


def attention(run: Run, salt: str) -> Html:
    """Show what every federation attended to; nothing where none did."""
    record = run.record
    if not any(weights for one in record.rounds for weights in one["attention"].values()):
        return NOTHING
    told = "What each federation's keys and values are made of: the weight of every participant when it aggregated."
    shown = picture(lambda: attention_picture([record], INCHES), f"{salt}-attention", "attention weights by round")
    rows = [
        [federation, child, "no number" if weight is None else f"{weight:.3f}"]
        for federation, weights in record.round()["attention"].items()
        for child, weight in weights.items()
    ]
    last = folded("Weights of the last round", table(["federation", "attended to", "weight"], rows[:200], words=[1]))
    return joined([element("p", told), shown, last])


def routes(run: Run, salt: str) -> Html:
    """Show where residuals went; nothing where none did."""
    record, found = run.record, run.record.routes
    if not found:
        return NOTHING
    names = {node["name"] for node in record.nodes}
    lost = sum(count for (_, home), count in found.items() if home == DROPPED and DROPPED not in names)
    homes = {ends: count for ends, count in found.items() if ends[0] in names and ends[1] in names}
    told = f"What fitted badly at home travelled: {sum(found.values()) - lost:,} residuals found another federation"
    told += f", {lost:,} found none and were dropped." if lost else "."
    shown = NOTHING
    if homes:
        shown = picture(lambda: draw_world(of_names(record), arrows=homes), f"{salt}-routes", "routes of residuals")
    rows = [[origin, home, whole(count)] for (origin, home), count in found.most_common(200)]
    by_round = [
        [str(one["round"] + 1), ", ".join(f"{path} ({count:,})" for path, count in one["routes"].items())]
        for one in record.rounds
        if one["routes"]
    ]
    return joined(
        [
            element("p", told),
            shown,
            if_long("All routes", len(rows), table(["residual of", "went to", "times"], rows, words=[1])),
            folded("Round by round", table(["round", "routes"], by_round, words=[1])),
        ]
    )


def privacy(run: Run, salt: str) -> Html:
    """Show what every private node has spent, or say that nothing is private."""
    found = numbers.accounts(run.record)
    if not found:
        return element("p", "Nothing in this run is private: no node clips or noises what it sends or trains on.")
    rows = [_account(one) for one in found]
    headings = ("node", "hides", "epsilon", "max_epsilon", "delta", "noise_multiplier", "clip_norm")
    spent = [one for one in found if one.spent]
    told = (
        "Epsilon spent, by Opacus' accountants. Updates: that the node, with all below it, took part. Examples: that "
        "one block of text was trained on. A node whose next step would pass its max_epsilon takes no more part."
    )
    parts = [element("p", told), if_long("All private nodes", len(rows), table(headings, rows, words=[1]))]
    if any(value is not None for one in spent for value in one.spent.values()):
        parts.append(picture(lambda: budget(run.record, INCHES), f"{salt}-budget", "privacy spent by round"))
    return joined([*parts, folded("Epsilon round by round", _ledger(run.record, spent[:24]))])


def _account(one: numbers.Account) -> list[str]:
    last = epsilon(one.spent[max(one.spent)]) if one.spent else "nothing spent"
    asked = (one.max_epsilon, one.delta, one.noise_multiplier, one.clip_norm)
    return [one.node, numbers.KIND_NAMES[one.kind], last, *map(plain, asked)]


def _ledger(record: RunRecord, spent: list[numbers.Account]) -> Html:
    headings = ["round", *(f"{one.node} ({numbers.KIND_NAMES[one.kind]})" for one in spent)]
    counted = [one["round"] + 1 for one in record.rounds]
    rows = [
        [str(number), *(epsilon(one.spent[number]) if number in one.spent else "" for one in spent)]
        for number in counted
    ]
    return table(headings, rows) if spent else NOTHING


def costs(run: Run, salt: str) -> Html:
    """Show time and traffic."""
    record, seconds = run.record, run.record.content["seconds"]
    tokens, moved, rounds = numbers.tokens(record), numbers.moved(record), len(record.rounds)
    told = facts(
        [
            ("wall time", f"{duration(seconds)}, of all starts together"),
            ("a round", duration(seconds / rounds) if rounds else ""),
            ("tokens a second", whole(tokens / seconds) if tokens and seconds > 0 else ""),
            ("moved", f"{size(moved)} over all edges, both ways" if moved else ""),
            ("moved a round", size(moved / rounds) if moved else ""),
            ("moved for each token", size(moved / tokens) if moved and tokens else ""),
        ]
    )
    if not moved:
        return told
    note = element("p", "Down from the parent, up to it, all rounds together; the more, the wider the edge.")
    box = shortened(of_traffic(record), MOST_LEAVES)
    return joined([told, note, picture(lambda: draw_world(box), f"{salt}-traffic", "bytes over every edge")])
