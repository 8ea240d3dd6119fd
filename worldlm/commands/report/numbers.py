"""What a report works out of a record, beside what the record says itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from worldlm.commands.compare.comparable import all_tokens
from worldlm.commands.compare.table import spread
from worldlm.plots.budget import KINDS
from worldlm.runs.results import MOMENTS, Moment, RunRecord

KIND_NAMES = {"epsilon": "updates", "example_epsilon": "examples"}
"""What is hidden by each kind of privacy."""
_ASKED = {"epsilon": ("noise_multiplier", "clip_norm", "delta"),
          "example_epsilon": ("example_noise_multiplier", "example_clip_norm", "example_delta")}  # fmt: skip


def with_depth(node: dict[str, Any], depth: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield a node of a recorded tree and all below it, parents first, each with its levels below the first."""
    yield node, depth
    for child in node["children"]:
        yield from with_depth(child, depth + 1)


def mean(
    record: RunRecord, nodes: Sequence[str], moment: Moment, measure: str = "perplexity", *, best: bool = False
) -> float | None:
    """Return the mean over nodes of their last or lowest scores; None where one of them has none.

    Args:
        record: The run.
        nodes: Names of the nodes.
        moment: Which score.
        measure: `perplexity` or `bits_per_byte`.
        best: Whether the lowest is meant.
    """
    find = record.best if best else record.last
    found = spread(find(name, moment, measure) for name in nodes)
    return None if found is None else found.mean


def headline(record: RunRecord) -> tuple[Moment, list[str]]:
    """Return which score stands for a run, and the data nodes that have it.

    That is after_fit, where every data node that was measured has one; else after_merge, as where one node trains on
    the text of all, and the others only listen.
    """
    having = {
        moment: [node for node in record.data_nodes if record.last(node, moment) is not None] for moment in MOMENTS
    }
    merged, fitted = (having[moment] for moment in MOMENTS)
    return ("after_fit", fitted) if set(fitted) >= set(merged) else ("after_merge", merged)


def tokens(record: RunRecord) -> int:
    """Return the tokens that all nodes trained on; 0 before the first round ended."""
    return all_tokens(record) if record.rounds else 0


def moved(record: RunRecord) -> float:
    """Return the bytes that went over all edges, both ways."""
    return 1e6 * list(record.megabytes().values())[-1] if record.rounds else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What one kind of privacy asks for at a node, and what was spent of it."""

    node: str
    """The node's name."""
    kind: str
    """A key of `KIND_NAMES`, under which epsilon is recorded."""
    noise_multiplier: float | None
    """None where the record does not say."""
    clip_norm: float | None
    """None where the record does not say."""
    delta: float | None
    """None where the record does not say."""
    max_epsilon: float | None
    """None where there is no limit, or the record does not say."""
    spent: dict[int, float | None]
    """Epsilon by round, from 1, where any was spent by then; None is no bound."""


def accounts(record: RunRecord) -> list[Account]:
    """Return the accounts of all nodes at which privacy is asked for and can be spent, or an epsilon was recorded."""
    can = {"epsilon": {node["name"] for node in record.nodes} - {record.root},  # the root uploads to nobody
           "example_epsilon": set(record.data_nodes)}  # fmt: skip
    found = [_account(record, node, kind) for node in record.nodes for kind in KINDS]
    return [one for one in found if one.spent or (_asked(one) and one.node in can[one.kind])]


def _asked(one: Account) -> bool:
    return one.noise_multiplier is not None or one.max_epsilon is not None


def _account(record: RunRecord, node: dict[str, Any], kind: str) -> Account:
    name = node["name"]
    noise, clip, delta = (node.get(key) for key in _ASKED[kind])
    by_round = {one["round"] + 1: one["nodes"].get(name, {}) for one in record.rounds}
    return Account(
        node=name, kind=kind, noise_multiplier=noise, clip_norm=clip, delta=delta, max_epsilon=node.get(KINDS[kind]),
        spent={number: figures[kind] for number, figures in by_round.items() if kind in figures},
    )  # fmt: skip
