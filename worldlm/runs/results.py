"""What a run leaves behind for programs to read, read back: its results.json."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from worldlm.topology.errors import UserError

RESULTS = "results.json"
FORMAT = 1
"""Counted up whenever results.json changes its meaning."""

Moment = Literal["before", "after_merge", "after_fit"]
MOMENTS: tuple[Moment, Moment] = ("after_merge", "after_fit")
"""Of every round; `before` was once, before the first."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run: what its results.json says of it."""

    method: str
    """Its name among others: in a comparison, that of its method."""
    folder: Path
    """Where it lies."""
    content: dict[str, Any]
    """Its results.json; see `worldlm.callbacks.Record`."""

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
        """What every round came to."""
        rounds: list[dict[str, Any]] = self.content["rounds"]
        return rounds

    def round(self, number: int | None = None) -> dict[str, Any]:
        """Return what a round, from 0, came to; by default the last one.

        Raises:
            KeyError: If there is none of that number.
        """
        if number is None:
            return self.rounds[-1]
        return {one["round"]: one for one in self.rounds}[number]

    @property
    def tree(self) -> dict[str, Any]:
        """The root: its `name`, `corpus`, `children`, and what privacy asks for."""
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
        """The largest that update-level privacy asks for at a node; None where it is asked for at none."""
        found = (node.get("noise_multiplier") for node in self.nodes)
        return max((float(one) for one in found if one is not None), default=None)

    @property
    def routes(self) -> Counter[tuple[str, str]]:
        """How many residuals of each origin found each home."""
        return sum(map(self.routes_of, self.rounds), Counter[tuple[str, str]]())

    @staticmethod
    def routes_of(one: dict[str, Any]) -> Counter[tuple[str, str]]:
        """Return how many residuals of each origin found each home in a round."""
        return Counter({(path.split(" > ")[0], path.split(" > ")[1]): number for path, number in one["routes"].items()})

    def series(self, node: str, moment: Moment, measure: str = "perplexity") -> dict[int, float]:
        """Return a node's scores by round, counted from 1; rounds without one are left out."""
        found = {}
        for one in self.rounds:
            value = one["nodes"].get(node, {}).get(moment, {}).get(measure)
            if value is not None:
                found[one["round"] + 1] = float(value)
        return found

    def last(self, node: str, moment: Moment, measure: str = "perplexity") -> float | None:
        """Return a node's last score; None if there is none."""
        series = self.series(node, moment, measure)
        return series[max(series)] if series else None

    def best(self, node: str, moment: Moment, measure: str = "perplexity") -> float | None:
        """Return a node's lowest score of all rounds: what stopping it early would have kept; None if there is none."""
        return min(self.series(node, moment, measure).values(), default=None)

    def tokens(self, node: str) -> int:
        """Return the tokens that a node trained on; 0 if it did not."""
        return int(self.rounds[-1]["nodes"].get(node, {}).get("tokens") or 0)

    def megabytes(self) -> dict[int, float]:
        """Return what moved over all edges, both ways, up to the end of each round, counted from 1.

        What nodes receive that never train is left out: it is sent so that they can be measured.
        """
        listeners = {name for name, facts in self.content["data_nodes"].items() if not facts.get("fits")}
        moved, total, known = dict[int, float](), 0, dict[str, int]()
        for one in self.rounds:
            nodes = {name: figures for name, figures in one["nodes"].items() if name not in listeners}
            new = {name: node.get("bytes_down", 0) + node.get("bytes_up", 0) for name, node in nodes.items()}
            for name, bytes_ in new.items():
                before = known.get(name, 0)  # a node that came back counts from 0 again
                total += bytes_ - before if bytes_ >= before else bytes_
            known = new  # what left has moved what it moved
            moved[one["round"] + 1] = total / 1e6
        return moved

    @property
    def changes(self) -> list[dict[str, Any]]:
        """How the topology changed between rounds; see `worldlm.topology.changes.Changes.record`.

        Each with `round`, the first after it, from 0.
        """
        changes: list[dict[str, Any]] = self.content.get("changes", [])
        return changes

    @property
    def epsilon(self) -> float | None:
        """The largest epsilon that a node has spent, of whichever kind; None where nothing is private."""
        spent = [
            node[kind]
            for node in self.rounds[-1]["nodes"].values()
            for kind in ("epsilon", "example_epsilon")
            if kind in node
        ]
        return max((math.inf if one is None else float(one) for one in spent), default=None)


def results_of(folder: Path) -> Path | None:
    """Return the results.json of the last version in a run's folder, or of the folder itself; None if there is none."""
    numbered = [path for path in folder.glob(f"version_*/{RESULTS}") if path.parent.name[8:].isdigit()]
    direct = folder / RESULTS
    return max(numbered, key=lambda path: int(path.parent.name[8:]), default=direct if direct.is_file() else None)


def read_results(path: Path) -> dict[str, Any]:
    """Read a results.json.

    Raises:
        UserError: If it is none, or of another format.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if content["format"] != FORMAT:
            raise UserError([f"{path}: format {content['format']!r} is not known; this worldlm reads {FORMAT}"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError([f"{path}: no record of a run: {error}"]) from error
    return content


def nodes_of(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the nodes of a recorded tree, parents first."""
    yield node
    for child in node["children"]:
        yield from nodes_of(child)
