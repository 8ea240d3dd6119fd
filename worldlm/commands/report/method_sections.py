"""Sections of a page about a run's method: its world, attention, residuals, privacy and costs."""

from __future__ import annotations

from worldlm.commands.report import metrics
from worldlm.commands.report.charts import INCHES, MAX_LEAVES, picture
from worldlm.commands.report.html_tags import NOTHING, Html, element, facts, folded, if_long, joined, table, warning
from worldlm.commands.report.load_runs import Run
from worldlm.commands.report.number_format import count_text, duration, epsilon, setting, size
from worldlm.plots.boxes import of_names, of_settings, of_traffic, shortened
from worldlm.plots.budget import budget
from worldlm.plots.heatmaps import attention as attention_picture
from worldlm.plots.world import draw_world
from worldlm.runs.guarantees import towards, unit, warnings
from worldlm.runs.results import RunRecord
from worldlm.runs.scores import largest_first


def world(run: Run, salt: str) -> Html:
    """Show the tree and the settings of every node."""
    box = shortened(of_settings(run.record), MAX_LEAVES)
    note = "The root is on the left, and every federation has a frame."
    if any(child.lines for child in box.walk() if child.name):
        note += " A setting also holds for all nodes below."
    return joined(
        [
            element("p", note),
            picture(lambda: draw_world(box), f"{salt}-world", f"topology {run.record.topology}"),
        ]
    )


def attention(run: Run, salt: str) -> Html:
    """Show the attention weights of every mixture; nothing without attention."""
    mixtures = run.record.mixtures
    if not mixtures:
        return NOTHING
    note = (
        "Each federation mixes keys and values for each receiver: a child, or a node below whose residual it answers."
    )
    weights_picture = picture(
        lambda: attention_picture([run.record], INCHES), f"{salt}-attention", "attention weights of the last round"
    )
    rows = [
        [federation, receiver, ", ".join(f"{source} {weight:.2f}" for source, weight in largest_first(weights))]
        for federation, receivers in mixtures.items()
        for receiver, weights in receivers.items()
    ]
    last = folded("Weights of the last round", table(["federation", "receiver", "sources"], rows[:200], words=[1, 2]))
    return joined([element("p", note), weights_picture, last])


def routes(run: Run, salt: str) -> Html:
    """Show the routes of residuals; nothing where none were sent."""
    record, found = run.record, run.record.routes
    if not found:
        return NOTHING
    names = {node["name"] for node in record.nodes}
    homes = {ends: count for ends, count in found.items() if ends[0] in names and ends[1] in names}
    note = f"{sum(found.values()):,} residuals were answered. An arrow points to what the answer attends to most."
    arrows = NOTHING
    if homes:
        arrows = picture(lambda: draw_world(of_names(record), arrows=homes), f"{salt}-routes", "routes of residuals")
    rows = [[origin, home, count_text(count)] for (origin, home), count in found.most_common(200)]
    by_round = [
        [str(round_["round"] + 1), ", ".join(f"{path} ({count:,})" for path, count in round_["routes"].items())]
        for round_ in record.rounds
        if round_["routes"]
    ]
    return joined(
        [
            element("p", note),
            arrows,
            if_long("All routes", len(rows), table(["residual of", "attends most to", "times"], rows, words=[1])),
            folded("Round by round", table(["round", "routes"], by_round, words=[1])),
        ]
    )


def privacy(run: Run, salt: str) -> Html:
    """Show the privacy budget of every private node."""
    found = metrics.accounts(run.record)
    if not found:
        return element(
            "p", "This run has no differential privacy: no node clips its updates or examples and adds noise."
        )
    rows = [_account_row(account) for account in found]
    headings = ("node", "protects", "towards", "epsilon", "max_epsilon", "delta", "noise_multiplier", "clip_norm")
    spent = [account for account in found if account.spent]
    note = (
        "Epsilon spent at delta, which bounds what those named under towards learn about the unit under protects. A "
        "node stops taking part before it would exceed its max_epsilon."
    )
    weak = warnings((account.node, list(account.spent.values())[-1]) for account in spent)
    shown = if_long("All private nodes", len(rows), table(headings, rows, words=[1, 2]))
    parts = [element("p", note), warning(*weak), shown]
    if any(epsilon_ is not None for account in spent for epsilon_ in account.spent.values()):
        parts.append(picture(lambda: budget(run.record, INCHES), f"{salt}-budget", "privacy spent by round"))
    return joined([*parts, folded("Epsilon round by round", _ledger(run.record, spent[:24]))])


def _account_row(account: metrics.Account) -> list[str]:
    last = epsilon(account.spent[max(account.spent)]) if account.spent else "nothing spent"
    settings = (account.max_epsilon, account.delta, account.noise_multiplier, account.clip_norm)
    return [account.node, unit(account.kind, account.unit), towards(account.kind), last, *map(setting, settings)]


def _ledger(record: RunRecord, spent: list[metrics.Account]) -> Html:
    headings = ["round", *(f"{account.node} ({metrics.KIND_NAMES[account.kind]})" for account in spent)]
    rounds = [round_["round"] + 1 for round_ in record.rounds]
    rows = [
        [str(number), *(epsilon(account.spent[number]) if number in account.spent else "" for account in spent)]
        for number in rounds
    ]
    return table(headings, rows) if spent else NOTHING


def costs(run: Run, salt: str) -> Html:
    """Show time and traffic."""
    record, seconds = run.record, run.record.content["seconds"]
    tokens, moved, rounds = metrics.tokens(record), metrics.moved(record), len(record.rounds)
    totals = facts(
        [
            ("wall time", f"{duration(seconds)}, sum of all starts"),
            ("per round", duration(seconds / rounds) if rounds else ""),
            ("tokens per second", count_text(tokens / seconds) if tokens and seconds > 0 else ""),
            ("traffic", f"{size(moved)} over all edges, both ways" if moved else ""),
            ("traffic per round", size(moved / rounds) if moved else ""),
            ("traffic per token", size(moved / tokens) if moved and tokens else ""),
        ]
    )
    if not moved:
        return totals
    note = element("p", "Bytes from and to the parent in all rounds. The more bytes, the wider the edge.")
    box = shortened(of_traffic(record), MAX_LEAVES)
    return joined([totals, note, picture(lambda: draw_world(box), f"{salt}-traffic", "bytes over every edge")])
