"""Figures that a report computes from a record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from worldlm.commands.compare.checks import all_tokens
from worldlm.commands.compare.table import spread
from worldlm.plots.budget import KINDS
from worldlm.runs.results import MOMENTS, Moment, RunRecord

KIND_NAMES = {"epsilon": "updates", "example_epsilon": "examples"}
"""What each kind of privacy protects."""
_SETTINGS = {"epsilon": ("noise_multiplier", "clip_norm", "delta"),
          "example_epsilon": ("example_noise_multiplier", "example_clip_norm", "example_delta")}  # fmt: skip


def with_depth(node: dict[str, Any], depth: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield a node of a recorded tree and all below it, parents first, each with its depth below the first."""
    yield node, depth
    for child in node["children"]:
        yield from with_depth(child, depth + 1)


def mean(
    record: RunRecord, nodes: Sequence[str], moment: Moment, measure: str = "perplexity", *, best: bool = False
) -> float | None:
    """Return the mean over the nodes that have a score of their last or lowest ones; None if none has any.

    Args:
        record: The run.
        nodes: Names of the nodes.
        moment: Which score.
        measure: `perplexity` or `bits_per_byte`.
        best: Whether to take the lowest score of all rounds instead of the last.
    """
    find = record.best if best else record.last
    found = spread(score for name in nodes if (score := find(name, moment, measure)) is not None)
    return None if found is None else found.mean


def headline(record: RunRecord) -> tuple[Moment, list[str]]:
    """Return the score that summarises a run, and the data nodes that have it.

    This is after_fit if every evaluated data node has one, else after_merge, as where one node trains on all text and
    the other nodes only receive the model.
    """
    having = {
        moment: [node for node in record.data_nodes if record.last(node, moment) is not None] for moment in MOMENTS
    }
    merged, fitted = (having[moment] for moment in MOMENTS)
    return ("after_fit", fitted) if set(fitted) >= set(merged) else ("after_merge", merged)


def tokens(record: RunRecord) -> int:
    """Return the number of tokens that all nodes trained on; 0 before the end of the first round."""
    return all_tokens(record) if record.rounds else 0


def moved(record: RunRecord) -> float:
    """Return the bytes sent over all edges, both ways."""
    return 1e6 * list(record.megabytes().values())[-1] if record.rounds else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The settings of one kind of privacy at a node, and the epsilon spent."""

    node: str
    """The node's name."""
    kind: str
    """A key of `KIND_NAMES`, under which the record has epsilon."""
    unit: str | None
    """The protected unit of examples; None for updates, or where it is not recorded."""
    noise_multiplier: float | None
    """None where it is not recorded."""
    clip_norm: float | None
    """None where it is not recorded."""
    delta: float | None
    """None where it is not recorded."""
    max_epsilon: float | None
    """None where there is no limit, or it is not recorded."""
    spent: dict[int, float | None]
    """Epsilon by round, from 1, for rounds after which any was spent; None means unbounded."""


def accounts(record: RunRecord) -> list[Account]:
    """Return the accounts of all nodes that have privacy settings and can spend epsilon, or have spent some."""
    can = {"epsilon": {node["name"] for node in record.nodes} - {record.root},  # the root does not upload
           "example_epsilon": set(record.data_nodes)}  # fmt: skip
    found = [_account(record, node, kind) for node in record.nodes for kind in KINDS]
    return [
        account for account in found if account.spent or (_is_private(account) and account.node in can[account.kind])
    ]


def _is_private(account: Account) -> bool:
    return account.noise_multiplier is not None or account.max_epsilon is not None


def _account(record: RunRecord, node: dict[str, Any], kind: str) -> Account:
    name = node["name"]
    noise, clip, delta = (node.get(key) for key in _SETTINGS[kind])
    by_round = {round_["round"] + 1: round_["nodes"].get(name, {}) for round_ in record.rounds}
    return Account(
        node=name, kind=kind, unit=node.get("example_unit"), noise_multiplier=noise, clip_norm=clip, delta=delta,
        max_epsilon=node.get(KINDS[kind]),
        spent={number: figures[kind] for number, figures in by_round.items() if kind in figures},
    )  # fmt: skip
