"""What an epsilon of differential privacy means: at which delta, for which unit, and towards whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from worldlm.topology.errors import join_names

LARGEST_USEFUL = 10.0
"""A larger epsilon is a weak guarantee or none; arXiv 2303.00654, section 5.2."""

KINDS = ("epsilon", "example_epsilon")
"""The names of epsilon in results.json: of updates, and of examples."""

_DELTAS = {"epsilon": "delta", "example_epsilon": "example_delta"}
_UNITS = {
    "block": "each block of text",
    "document": "each document",
    "person": "each person, with all their documents",
}


def unit(kind: str, name: str | None = None) -> str:
    """Return in words what a kind of privacy protects.

    Args:
        kind: One of `KINDS`.
        name: For examples: `block`, `document` or `person`; a block if it was not recorded.
    """
    return "all text at and below the node" if kind == "epsilon" else _UNITS[name or "block"]


def towards(kind: str) -> str:
    """Return in words against whom a kind of privacy protects."""
    return "its parent and all beyond it" if kind == "epsilon" else "everyone who gets its model"


def meaning(kind: str, delta: float | None, unit_name: str | None = None) -> str:
    """Return in words what an epsilon means, such as `at delta 1e-05, for each document, towards its parent`."""
    at = "" if delta is None else f"at delta {delta:g}, "
    return f"{at}for {unit(kind, unit_name)}, towards {towards(kind)}"


def meanings(nodes: Iterable[Mapping[str, Any]], kinds: Iterable[str] = KINDS) -> list[str]:
    """Return the meanings of the epsilons of a recorded tree, each once: `KIND: at delta ...`.

    Args:
        nodes: The recorded nodes; see `worldlm.runs.results.RunRecord.nodes`.
        kinds: The kinds to describe.
    """
    nodes = list(nodes)
    found = [
        f"{kind}: {meaning(kind, node[_DELTAS[kind]], node.get('example_unit'))}"
        for kind in kinds
        for node in nodes
        if node.get(_DELTAS[kind]) is not None
    ]
    return list(dict.fromkeys(found))


def is_useful(epsilon: float | None) -> bool:
    """Return whether an epsilon that was spent promises protection; None is unbounded."""
    return epsilon is not None and epsilon <= LARGEST_USEFUL


def warnings(spent: Iterable[tuple[str, float | None]]) -> list[str]:
    """Return a line about those who spent too much for a useful guarantee; none if nobody did.

    Args:
        spent: Names of nodes or runs, each with an epsilon. A name may occur several times.
    """
    names = dict.fromkeys(name for name, epsilon in spent if not is_useful(epsilon))
    return [f"epsilon above {LARGEST_USEFUL:g} protects little or nothing: {join_names(names, 6)}"] if names else []
