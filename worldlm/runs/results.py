"""Reads a run's results.json."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from worldlm.files.regular import check_regular
from worldlm.topology.errors import UserError

RESULTS = "results.json"
FORMAT = 1
"""Version of results.json, raised when the meaning of its content changes."""

Moment = Literal["before", "received", "after_merge", "after_fit"]
MOMENTS: tuple[Moment, Moment] = ("after_merge", "after_fit")
"""The moments of every round at which nodes are evaluated. `before` is evaluated once, before the first round."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The results of a run."""

    method: str
    """The run's name among others; in a comparison, that of its method."""
    folder: Path
    """The run's folder."""
    content: dict[str, Any]
    """The content of results.json; see `worldlm.callbacks.Record`."""

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.content["seed"])

    @property
    def title(self) -> str:
        """The run's name in messages."""
        return f"{self.method}, seed {self.seed}"

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """The results of every round."""
        rounds: list[dict[str, Any]] = self.content["rounds"]
        return rounds

    def round(self, number: int | None = None) -> dict[str, Any]:
        """Return the results of a round, from 0; by default of the last one.

        Raises:
            KeyError: If there is no such round.
        """
        if number is None:
            return self.rounds[-1]
        return {round_["round"]: round_ for round_ in self.rounds}[number]

    @property
    def tree(self) -> dict[str, Any]:
        """The recorded root, with `name`, `corpus`, `children` and the settings of privacy."""
        root: dict[str, Any] = self.content["topology"]["root"]
        return root

    @property
    def nodes(self) -> list[dict[str, Any]]:
        """The nodes of the recorded tree, parents first."""
        return list(nodes_of(self.tree))

    @property
    def data_nodes(self) -> list[str]:
        """Names of the nodes that have a corpus, in the order of the tree."""
        return [node["name"] for node in self.nodes if node["corpus"] is not None]

    @property
    def topology(self) -> str:
        """Name of the topology."""
        return str(self.content["topology"]["name"])

    @property
    def root(self) -> str:
        """Name of the root."""
        return str(self.tree["name"])

    @property
    def noise_multiplier(self) -> float | None:
        """The largest noise multiplier of update-level privacy at any node; None without it."""
        found = (node.get("noise_multiplier") for node in self.nodes)
        return max((float(value) for value in found if value is not None), default=None)

    @property
    def routes(self) -> Counter[tuple[str, str]]:
        """The number of answers to residuals of each origin, by the source that the answer attends to most."""
        return self.routes_from(0)

    def routes_from(self, first: int) -> Counter[tuple[str, str]]:
        """Return the number of answers of each route, in the rounds from a number on."""
        routes = Counter[tuple[str, str]]()
        for round_ in self.rounds:
            if round_["round"] >= first:
                routes.update(self.routes_of(round_))
        return routes

    @staticmethod
    def routes_of(round_: dict[str, Any]) -> Counter[tuple[str, str]]:
        """Return the number of answers of each route in a round."""
        routes = round_["routes"].items()
        return Counter({(path.split(" > ")[0], path.split(" > ")[1]): number for path, number in routes})

    @property
    def mixtures(self) -> dict[str, dict[str, dict[str, float]]]:
        """The attention weights of the last round: federation -> receiver -> source -> weight; empty without them."""
        last = self.rounds[-1] if self.rounds else {}
        return dict(last.get("mixtures", {}))

    def series(self, node: str, moment: Moment, measure: str = "perplexity") -> dict[int, float]:
        """Return a node's scores by round, counted from 1. Rounds without a score are left out."""
        scores = {round_["round"] + 1: _score(round_, node, moment, measure) for round_ in self.rounds}
        return {number: score for number, score in scores.items() if score is not None}

    def last(self, node: str, moment: Moment, measure: str = "perplexity") -> float | None:
        """Return a node's score in the last round in which it was evaluated; None without scores."""
        evaluated = (round_ for round_ in reversed(self.rounds) if moment in round_["nodes"].get(node, {}))
        return next((_score(round_, node, moment, measure) for round_ in evaluated), None)

    def best(self, node: str, moment: Moment, measure: str = "perplexity") -> float | None:
        """Return a node's lowest score of all rounds, as of early stopping; None without scores."""
        return min(self.series(node, moment, measure).values(), default=None)

    def tokens(self, node: str) -> int:
        """Return the number of tokens that a node trained on."""
        return int(self.rounds[-1]["nodes"].get(node, {}).get("tokens") or 0)

    def megabytes(self) -> dict[int, float]:
        """Return the megabytes sent over all edges, both ways, up to the end of each round, counted from 1.

        Downloads of nodes that never train are left out, because they only serve to evaluate these nodes.
        """
        listeners = {name for name, facts in self.content["data_nodes"].items() if not facts.get("fits")}
        moved, total, known = dict[int, float](), 0, dict[str, int]()
        for round_ in self.rounds:
            nodes = {name: figures for name, figures in round_["nodes"].items() if name not in listeners}
            new = {name: node.get("bytes_down", 0) + node.get("bytes_up", 0) for name, node in nodes.items()}
            for name, bytes_ in new.items():
                before = known.get(name, 0)  # the count of a node that left and came back starts at 0
                total += bytes_ - before if bytes_ >= before else bytes_
            known = new  # the traffic of nodes that left stays in the total
            moved[round_["round"] + 1] = total / 1e6
        return moved

    @property
    def changes(self) -> list[dict[str, Any]]:
        """The changes of the topology between rounds; see `worldlm.topology.changes.Changes.record`.

        Each has `round`, the first round after it, from 0.
        """
        changes: list[dict[str, Any]] = self.content.get("changes", [])
        return changes

    @property
    def epsilon(self) -> float | None:
        """The largest epsilon of any kind that a node has spent; None if no node is private."""
        spent = [
            node[kind]
            for node in self.rounds[-1]["nodes"].values()
            for kind in ("epsilon", "example_epsilon")
            if kind in node
        ]
        return max((math.inf if epsilon is None else float(epsilon) for epsilon in spent), default=None)


def results_of(folder: Path) -> Path | None:
    """Return the path of results.json in a run's last version, or in the folder itself; None if there is none."""
    numbered = [path for path in folder.glob(f"version_*/{RESULTS}") if path.parent.name[8:].isdecimal()]
    direct = check_regular(folder / RESULTS)
    return max(numbered, key=lambda path: int(path.parent.name[8:]), default=direct if direct.is_file() else None)


def read_results(path: Path) -> dict[str, Any]:
    """Read a results.json.

    Raises:
        UserError: If it is not the record of a run, or has another format.
    """
    try:
        content: dict[str, Any] = json.loads(check_regular(path).read_text("utf-8"))
        if content["format"] != FORMAT:
            raise UserError(
                [f"{path}: format {content['format']!r} is unknown; this version of worldlm reads format {FORMAT}"]
            )
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError([f"{path}: no record of a run: {error}"]) from error
    return content


def _score(round_: dict[str, Any], node: str, moment: Moment, measure: str) -> float | None:
    """Return a score of a round; None if there is none. A recorded perplexity of null is infinite or NaN."""
    found = round_["nodes"].get(node, {}).get(moment, {})
    if measure == "perplexity" and measure in found:
        return or_infinity(found[measure])
    value = found.get(measure)
    return None if value is None else float(value)


def or_infinity(value: float | None) -> float:
    """Return a recorded figure. A record has null for numbers that are not finite."""
    return math.inf if value is None else float(value)


def nodes_of(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the nodes of a recorded tree, parents first."""
    yield node
    for child in node["children"]:
        yield from nodes_of(child)
