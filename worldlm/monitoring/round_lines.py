"""The finished rounds of a record: one line of JSON per round, in memory and in results.json."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from worldlm.runs.results import RESULTS, read_results
from worldlm.topology.errors import UserError

log = logging.getLogger(__name__)


class RoundLines:
    """The finished rounds of a run, in order.

    Args:
        rounds: The first rounds.
    """

    def __init__(self, rounds: Iterable[Mapping[str, Any]] = ()) -> None:
        self.lines: list[str] = []
        """One line of strict JSON per round."""
        self.last = -1
        """Number of the last round, from 0; -1 if there is none."""
        self._digest = xxhash.xxh3_128()
        for content in rounds:
            self.add(content)

    def add(self, content: Mapping[str, Any]) -> None:
        """Add a round; its number is `content["round"]`.

        Raises:
            ValueError: If the content contains NaN or infinity.
        """
        self.lines.append(json.dumps(content, allow_nan=False))
        self.last = content["round"]
        self._digest.update(f"{self.lines[-1]}\n".encode())

    @property
    def digest(self) -> str:
        """Digest of all lines. A checkpoint contains it instead of the lines, so its size does not grow with them."""
        return self._digest.hexdigest()

    def routes(self) -> Counter[str]:
        """Return the number of answers to residuals of each route, over all rounds."""
        routes = Counter[str]()
        for content in self.parsed():
            routes.update(content["routes"])
        return routes

    def parsed(self) -> list[dict[str, Any]]:
        """Return the rounds as they were added."""
        return [json.loads(line) for line in self.lines]

    def before(self, number: int) -> RoundLines:
        """Return the rounds before the given one."""
        if self.last < number:
            return self
        return RoundLines(content for content in self.parsed() if content["round"] < number)


def find_rounds(number: int, digest: str, folders: Iterable[Path]) -> RoundLines:
    """Read the rounds before a checkpoint from the results.json that was written with it.

    Args:
        number: Number of rounds before the checkpoint; later ones are omitted.
        digest: Digest of these rounds.
        folders: Folders that may contain the file.

    Returns:
        The rounds. If no folder has them, none, and a warning is logged.
    """
    for folder in folders:
        try:
            rounds = RoundLines(read_results(folder / RESULTS)["rounds"][:number])
        except (UserError, KeyError, TypeError, ValueError):
            continue
        if len(rounds.lines) == number and rounds.digest == digest:
            return rounds
    if number:
        log.warning(
            "no %s beside the checkpoint contains the %d rounds before it; the record starts with the next one",
            RESULTS,
            number,
        )
    return RoundLines()
