"""Counts of residuals are added in place: a sum of counters copies all routes so far at every node and round."""

from collections import Counter
from pathlib import Path

import pytest

from worldlm.monitoring.round_lines import RoundLines
from worldlm.runs.results import RunRecord

ROUNDS = [{"round": i, "routes": {"a > b": 1, f"c{i} > a": 2}} for i in range(4)]


@pytest.fixture(autouse=True)
def _no_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    def copied(*_: object) -> None:
        raise AssertionError("a sum of counters is quadratic")

    monkeypatch.setattr(Counter, "__add__", copied)


def test_routes_of_all_rounds() -> None:
    assert RoundLines(ROUNDS).routes() == {"a > b": 4, "c0 > a": 2, "c1 > a": 2, "c2 > a": 2, "c3 > a": 2}


def test_routes_of_a_record_from_a_round_on() -> None:
    record = RunRecord(method="m", folder=Path(), content={"rounds": ROUNDS})
    assert record.routes["a", "b"] == 4
    assert record.routes_from(2) == {("a", "b"): 2, ("c2", "a"): 2, ("c3", "a"): 2}
