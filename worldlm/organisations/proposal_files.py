"""The folder in which a node keeps a proposed topology, the consents to it, and the last change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worldlm.files.atomic_write import write_text
from worldlm.topology.errors import UserError

PROPOSAL = "proposal.yaml"
"""Name of the file of a proposed topology."""

_MAX_BYTES = 500_000
"""Size of the largest topology that can be proposed, as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The last change of the topology."""

    round: int
    """The first round of the new topology, from 0."""
    file: str
    """Name of its file; empty at a node that joined with it."""
    joined: list[str]
    """Nodes that joined."""


@dataclass(frozen=True, slots=True)
class ProposalFiles:
    """The folder in which a node keeps a proposal, the consents to it, and the last change."""

    folder: Path

    @property
    def text(self) -> str:
        """The proposed topology, YAML; empty if there is none."""
        return self._read(PROPOSAL)

    def propose(self, text: str) -> None:
        """Propose a topology, in place of an earlier proposal.

        Raises:
            UserError: If it is too large, or an earlier proposal is being carried out.
        """
        if (size := len(json.dumps(text))) > _MAX_BYTES:
            raise UserError([f"a topology of {size:,} bytes is larger than the {_MAX_BYTES:,} that can be proposed"])
        if self.decided is not None:
            raise UserError(["the last proposal is being carried out: propose again when the next round has begun"])
        self.store(text)

    def store(self, text: str) -> None:
        """Store a proposal that the parent has passed on."""
        self._write(PROPOSAL, text)

    def consent(self, text: str) -> None:
        """Consent to a proposal. A consent cannot be withdrawn."""
        self._write("consents", "\n".join([*self._read("consents").split(), digest_of(text)]))

    def has_consented(self, text: str) -> bool:
        """Return whether this node has consented to a proposal."""
        return digest_of(text) in self._read("consents").split()

    def note(self, child: str, digest: str) -> None:
        """Note that a child, and all nodes below it, have consented to the proposal of a digest."""
        if digest and digest != self.of_child(child):
            self._write(f"consent.{child}", digest)

    def of_child(self, child: str) -> str:
        """Return the digest of the last proposal that a child has consented to, with all nodes below it."""
        return self._read(f"consent.{child}")

    @property
    def assessment(self) -> dict[str, Any]:
        """What the proposal would change: `of`, its digest; `lines`; `problem`, why it cannot be made; and `children`,
        those that must consent.
        """
        text = self._read("assessment.json")
        return dict(json.loads(text)) if text else {"of": "", "lines": [], "problem": "", "children": []}

    def assess(self, of: str, lines: Iterable[str], problem: str, children: Iterable[str]) -> None:
        """Store an assessment."""
        content = {"of": of, "lines": list(lines), "problem": problem, "children": list(children)}
        self._write("assessment.json", json.dumps(content))

    @property
    def decided(self) -> int | None:
        """At the root, the round before which it makes the change, from 0; None if not all have consented yet."""
        text = self._read("decided")
        return int(text) if text else None

    def decide(self, round: int) -> None:
        """Decide to make the change before a round."""
        self._write("decided", str(round))

    @property
    def last(self) -> Change | None:
        """The last change; None if there was none."""
        text = self._read("change.json")
        return Change(**json.loads(text)) if text else None

    def joins_at(self, child: str) -> int:
        """Return the first round, from 0, of a child that has joined with the last change; of all others it is 0."""
        return self.last.round if self.last is not None and child in self.last.joined else 0

    @property
    def topology(self) -> Path | None:
        """The file of the topology since the last change; None if there was none."""
        return self.folder / self.last.file if self.last is not None and self.last.file else None

    def finish(self, change: Change, text: str = "") -> None:
        """Store a change that is made, and drop the proposal."""
        if change.file:
            self._write(change.file, text)
        self._write("change.json", json.dumps(asdict(change)))
        for name in (PROPOSAL, "assessment.json", "decided"):
            (self.folder / name).unlink(missing_ok=True)

    def _read(self, name: str) -> str:
        path = self.folder / name
        return path.read_text("utf-8") if path.exists() else ""

    def _write(self, name: str, text: str) -> None:
        write_text(self.folder / name, text, to_disk=True)


def digest_of(*texts: str) -> str:
    """Return a digest of texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]
