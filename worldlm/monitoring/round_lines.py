"""The finished rounds of a record: a line of JSON each, in memory and in results.json alike."""

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
    """What finished rounds came to, in their order.

    Args:
        rounds: What to begin with.
    """

    def __init__(self, rounds: Iterable[Mapping[str, Any]] = ()) -> None:
        self.lines: list[str] = []
        """A line of strict JSON for each."""
        self.last = -1
        """Number of the last round, from 0."""
        self._digest = xxhash.xxh3_128()
        for one in rounds:
            self.add(one)

    def add(self, content: Mapping[str, Any]) -> None:
        """Add a round, under its number `round`.

        Raises:
            ValueError: If the content holds NaN or infinity.
        """
        self.lines.append(json.dumps(content, allow_nan=False))
        self.last = content["round"]
        self._digest.update(f"{self.lines[-1]}\n".encode())

    @property
    def digest(self) -> str:
        """Digest of all lines: a checkpoint holds it instead of them, and so stays as large as it is."""
        return self._digest.hexdigest()

    def routes(self) -> Counter[str]:
        """Return how many residuals went each way in all rounds."""
        return sum((Counter(one["routes"]) for one in self.parsed()), Counter[str]())

    def parsed(self) -> list[dict[str, Any]]:
        """Return the rounds as they were added."""
        return [json.loads(line) for line in self.lines]

    def before(self, number: int) -> RoundLines:
        """Return the rounds before one."""
        return self if self.last < number else RoundLines(one for one in self.parsed() if one["round"] < number)


def find_rounds(number: int, digest: str, folders: Iterable[Path]) -> RoundLines:
    """Read the rounds that a checkpoint tells of from the results.json that was written with it.

    Args:
        number: How many they are; those that were added later are left out.
        digest: Their digest.
        folders: Where the file may lie.

    Returns:
        The rounds; none, with a warning, where no folder has them.
    """
    for folder in folders:
        try:
            found = RoundLines(read_results(folder / RESULTS)["rounds"][:number])
        except (UserError, KeyError, TypeError, ValueError):
            continue
        if len(found.lines) == number and found.digest == digest:
            return found
    if number:
        log.warning(
            "the %d rounds before the checkpoint are in no %s beside it: the record begins with the next",
            number,
            RESULTS,
        )
    return RoundLines()
