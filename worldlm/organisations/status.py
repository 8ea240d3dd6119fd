"""What a node is doing, in a file that `worldlm organisations status` reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from worldlm.federation.type_checks import check_fields
from worldlm.files.atomic_write import write_text

STATUS = "status.json"
"""Name of the file in the folder of a node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What a node is doing. Times are in seconds since 1970, and None if there was no such moment."""

    node: str
    """Name of the node."""
    round: int
    """The current round, from 1."""
    num_rounds: int
    """How many rounds there are."""
    waits_for: list[str]
    """Neighbours whose messages it waits for."""
    parent: str
    """Name and address of the parent; empty at the root."""
    parent_answered: float | None
    """When the parent answered last."""
    called: Mapping[str, float | None]
    """When each child called last."""
    undelivered: Mapping[str, int]
    """Number of messages that are not delivered yet, by neighbour."""

    def write(self, path: Path) -> None:
        """Write it to a file, atomically."""
        write_text(path, json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Status | None:
        """Undo `write`; None if there is no such file, or its content is something else."""
        try:
            content = json.loads(path.read_text("utf-8"))
            status = cls(**{field.name: content[field.name] for field in fields(cls)})
            check_fields(status)
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return status

    def lines(self, now: float) -> Iterator[str]:
        """Yield the status as text.

        Args:
            now: The time, in seconds since 1970.
        """
        waiting = f", waits for {', '.join(self.waits_for)}" if self.waits_for else ""
        yield f"{self.node}: round {self.round}/{self.num_rounds}{waiting}"
        if self.parent:
            yield f"parent {self.parent}: {_ago('answered', self.parent_answered, now)}"
        for child, called in self.called.items():
            yield f"child {child}: {_ago('called', called, now)}"
        for neighbour, number in self.undelivered.items():
            if number:
                yield f"{number:,} message{'s' * (number > 1)} to {neighbour} not delivered yet"


def _ago(what: str, moment: float | None, now: float) -> str:
    if moment is None:
        return f"has not {what} yet"
    return f"{what} {max(0.0, now - moment):,.0f} s ago"
