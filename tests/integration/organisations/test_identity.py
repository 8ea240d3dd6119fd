"""Organisations that each run one node come to the same bits as one process that holds the whole world."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from organisations_at_home import of_node

from worldlm.callbacks import Compression, TokenRows
from worldlm.topology import Topology, parse_topology

Make = Callable[..., Any]


def without_scores(found: dict[str, Any]) -> dict[str, Any]:
    """Leave out the scores of a federation, which an organisation cannot compute without the text of others."""
    memory = {key: value for key, value in found["state"]["memory"].items() if key != "NodeMetrics"}
    return {**found, "state": {**found["state"], "memory": memory}}


@pytest.fixture
def check_identity(
    at_home: Make,
    one_node: Make,
    fit: Make,
    whole_method: Make,
    make_module: Make,
    snapshot: Make,
    differences: Make,
) -> Make:
    def check(topology: Topology, method: Make = whole_method, dropout: float = 0.0, **options: Any) -> None:
        whole = snapshot(fit(topology, method(), module=make_module(dropout=dropout), **options))
        apart = at_home(topology, one_node(topology, method, dropout, **options))
        for name, found in apart.items():
            expected = without_scores(of_node(whole, name))
            assert differences(without_scores(found), expected) == [], name

    return check


@pytest.mark.parametrize("kind", ["tree", "busy_tree"])
def test_a_tree_equals_one_process(kind: str, request: pytest.FixtureRequest, check_identity: Make) -> None:
    check_identity(request.getfixturevalue(kind), max_epochs=3)


@pytest.mark.parametrize(
    "number", [pytest.param(4), pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_a_random_world_equals_one_process(
    number: int,
    worlds: Make,
    whole_method: Make,
    check_identity: Make,
) -> None:
    @settings(max_examples=number, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(topology=worlds(), compressed=st.booleans(), dropout=st.sampled_from([0.0, 0.2]))
    def check(topology: Topology, compressed: bool, dropout: float) -> None:
        def method() -> list[Any]:
            extra = [Compression("bf16", "int8")] if compressed else []
            return [TokenRows(), *whole_method(), *extra]

        check_identity(topology, method, dropout, max_epochs=3)

    check()


LISTENING = """
name: listening
settings: {num_local_steps: 1, batch_size: 2}
root:
  name: world
  corpus: w
  children:
    - {name: a, corpus: a}
    - {name: ear, corpus: e, settings: {num_local_steps: 0}}
"""


def test_a_listener_follows(check_identity: Make) -> None:
    check_identity(parse_topology(LISTENING, "listening.yaml"), max_epochs=3)
