"""A chain of 64 nodes, the deepest tree allowed: it trains, is saved, validated, resumed, recorded and estimated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from worldlm.callbacks import (
    AttentionAggregation,
    Averaging,
    LastCheckpoint,
    NodeMetrics,
    Record,
    ResidualExchange,
    Traffic,
)
from worldlm.commands.estimate import estimate
from worldlm.plots.boxes import of_names, of_topology
from worldlm.plots.world import draw_world
from worldlm.runs.results import RunRecord
from worldlm.runs.results_schema import read_valid_results
from worldlm.topology import Node, Settings, Topology
from worldlm.topology.tree import MAX_LEVELS

Make = Callable[..., Any]
STEPS = Settings(num_local_steps=2)


def chain() -> Topology:
    node = Node(name=f"n{MAX_LEVELS}", corpus="a", settings=STEPS)
    for i in range(MAX_LEVELS - 1, 0, -1):
        node = Node(name=f"n{i}", settings=STEPS, children=(node,))
    return Topology(name="chain", root=node)


def method() -> list[Any]:
    """Without momentum, which would be applied 64 times, once at each level."""
    merging = [Averaging(), AttentionAggregation(), ResidualExchange(num_residuals=1)]
    return [*merging, NodeMetrics(), Traffic(), LastCheckpoint(), Record()]


def test_the_deepest_chain(fit: Make, make_module: Make) -> None:
    once = fit(chain(), method(), max_epochs=1, limit_val_batches=1)
    resumed = fit(chain(), method(), resume=LastCheckpoint.path(once), max_epochs=2, limit_val_batches=1)
    assert resumed.world.round == 1  # counted from 0

    content = read_valid_results(Record.path(resumed))
    record = RunRecord(method="m", folder=resumed.folder, content=content)
    assert [node["name"] for node in record.nodes] == list(chain().nodes)
    assert draw_world(of_names(record)).get_size_inches()[0] > 64 * 0.3
    assert of_topology(chain()).num_leaves == 1
    assert [level.num_nodes for level in estimate(resumed, make_module(), 2, 1e3).levels] == [1] * MAX_LEVELS
