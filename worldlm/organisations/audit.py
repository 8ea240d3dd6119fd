"""An append-only record of all that a node has sent: when, to whom, how much, and at which epsilon."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class Audit:
    """Appends to a file of JSON lines. A line is on disk before the message that it records can leave.

    Args:
        path: The file.
        run: Name of the run, which every line states: a node records all its runs in one file.
    """

    def __init__(self, path: Path, run: str = "") -> None:
        self.path = path
        self._run = run

    def add_message(self, to: str, name: str, size: int, digest: str) -> None:
        """Record a message.

        Args:
            to: Who receives it.
            name: ROUND.SUBROUND.KIND, with both counted from 0.
            size: Its size in bytes.
            digest: Its SHA-256.
        """
        self._add({"to": to, "message": name, "bytes": size, "sha256": digest})

    def add_epsilon(self, round: int, epsilons: Mapping[str, float]) -> None:
        """Record the privacy loss up to the end of a round, from 0, by kind."""
        self._add({"round": round, **epsilons})

    def _add(self, entry: Mapping[str, Any]) -> None:
        time = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"time": time, "run": self._run, **entry}, allow_nan=True)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield the entries in their order. A last line that was cut by a crash is left out."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict):
                    yield entry
