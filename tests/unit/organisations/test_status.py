"""What a node is doing, as it is written and shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from worldlm.organisations.status import Status

STATUS = Status(
    node="north",
    round=3,
    num_rounds=5,
    waits_for=["a"],
    parent="world at 127.0.0.1:7443",
    parent_answered=None,
    called={"a": 90.0, "b": None},
    undelivered={"world": 1, "a": 0},
)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    STATUS.write(path)
    assert Status.read(path) == STATUS


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"node": 1}', "\x00"])
def test_other_files_are_no_status(text: str, tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    assert Status.read(path) is None
    path.write_text(text)
    assert Status.read(path) is None


def test_it_is_shown() -> None:
    assert list(STATUS.lines(now=100.0)) == [
        "north: round 3/5, waits for a",
        "parent world at 127.0.0.1:7443: has not answered yet",
        "child a: called 10 s ago",
        "child b: has not called yet",
        "1 message to world not delivered yet",
    ]
