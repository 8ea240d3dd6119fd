"""Seconds on a link: latency once per message, plus bytes divided by bandwidth."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from worldlm.callbacks import Traffic
from worldlm.federation.state import NodeState
from worldlm.topology import Link, Node, Settings, Topology


def _trainer(logged: dict[str, float]) -> Any:
    link = Settings(num_local_steps=1, link=Link(bandwidth_mbps=8.0, latency_ms=50.0), num_subrounds=5)
    children = (
        Node(name="a", corpus="a", settings=link),
        Node(name="b", corpus="b", settings=Settings(num_local_steps=1)),
    )
    topology = Topology(name="star", root=Node(name="world", children=children))
    states = {name: NodeState(parameters={}) for name in topology.nodes}
    run_log = SimpleNamespace(scalars=lambda scalars, step: logged.update(scalars))
    world = SimpleNamespace(states=states, round=0)
    return SimpleNamespace(
        topology=topology, world=world, run_log=run_log, run_settings=SimpleNamespace(holds=lambda name: True)
    )


def _send(trainer: Any, name: str, times: int) -> None:
    state = trainer.world.states[name]
    state.num_messages += 2 * times
    if (link := trainer.topology.nodes[name].settings.link) is not None:
        state.link_seconds += (link.seconds(3_000_000) + link.seconds(1_000_000)) * times
    state.bytes_down += 3_000_000 * times
    state.bytes_up += 1_000_000 * times


def test_seconds_of_a_link() -> None:
    logged: dict[str, float] = {}
    trainer, traffic = _trainer(logged), Traffic()
    _send(trainer, "a", 1)
    _send(trainer, "b", 1)
    traffic.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert logged["a/link_seconds"] == pytest.approx(2 * 0.05 + 4.0)  # 4 MB at 1 MB/s
    assert "b/link_seconds" not in logged
    assert logged["world/bytes"] == 8_000_000

    restored = Traffic()
    _send(trainer, "a", 2)  # its federation had two sub-rounds
    restored.load_state_dict(traffic.state_dict())
    for callback in (traffic, restored):
        logged.clear()
        callback.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
        assert logged["a/link_seconds"] == pytest.approx(4 * 0.05 + 8.0)
        assert logged["a/bytes_up"] == 3_000_000

    logged.clear()
    traffic.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert "a/link_seconds" not in logged  # a did not take part
