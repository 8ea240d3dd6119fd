"""Seconds on a link: latency once a message, and bytes over bandwidth."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from worldlm.callbacks import Traffic
from worldlm.topology import Link, Node, Settings, Topology


def _trainer(logged: dict[str, float]) -> Any:
    link = Settings(num_local_steps=1, link=Link(bandwidth_mbps=8.0, latency_ms=50.0), num_subrounds=5)
    children = (
        Node(name="a", corpus="a", settings=link),
        Node(name="b", corpus="b", settings=Settings(num_local_steps=1)),
    )
    topology = Topology(name="star", root=Node(name="world", children=children))
    exchange = SimpleNamespace(bytes_down=Counter(), bytes_up=Counter())
    logger = SimpleNamespace(log_metrics=lambda metrics, step: logged.update(metrics))
    return SimpleNamespace(topology=topology, world=SimpleNamespace(exchange=exchange, round=0), loggers=[logger])


def _send(traffic: Traffic, trainer: Any, name: str, times: int) -> None:
    context: Any = SimpleNamespace(node=trainer.topology.nodes[name])
    for _ in range(times):
        traffic.on_receive(trainer, context, None)  # type: ignore[arg-type]
        traffic.on_upload(trainer, context, None)  # type: ignore[arg-type]
        trainer.world.exchange.bytes_down[name] += 3_000_000
        trainer.world.exchange.bytes_up[name] += 1_000_000


def test_seconds_of_a_link() -> None:
    logged: dict[str, float] = {}
    trainer, traffic = _trainer(logged), Traffic()
    _send(traffic, trainer, "a", 1)
    _send(traffic, trainer, "b", 1)
    traffic.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert logged["a/link_seconds"] == pytest.approx(2 * 0.05 + 4.0)  # 4 MB at 1 MB/s
    assert "b/link_seconds" not in logged
    assert logged["world/bytes"] == 8_000_000

    restored = Traffic()
    _send(traffic, trainer, "a", 2)  # its federation had two sub-rounds
    restored.load_state_dict(traffic.state_dict())
    for one in (traffic, restored):
        logged.clear()
        one.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
        assert logged["a/link_seconds"] == pytest.approx(4 * 0.05 + 8.0)
        assert logged["a/bytes_up"] == 3_000_000

    logged.clear()
    traffic.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert "a/link_seconds" not in logged  # it took no part
