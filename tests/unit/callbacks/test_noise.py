"""A private node in a world: by how much its noise counts, computed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from worldlm.callbacks import AttentionAggregation, Averaging, UpdatePrivacy
from worldlm.callbacks.noise import update_bound
from worldlm.federation.noise_weights import LEAST, noise_of_mean, reliability, signal_square
from worldlm.rounds import Context, World, run_round
from worldlm.topology import parse_topology

SIZE = 400

TREE = """
name: seven
settings: {num_local_steps: 1}
root:
  name: world
  children:
    - {name: A, children: [{name: a1, corpus: a1}, {name: a2, corpus: a2, settings: {PRIVATE}}]}
    - name: B
      children:
        - {name: b1, corpus: b1, settings: {ALSO}}
        - {name: ear, corpus: ear, settings: {num_local_steps: 0}}
"""
PRIVACY = "privacy: {clip_norm: 1.0, noise_multiplier: 3.0}"


def _run(num_rounds: int, private: str = "", also: str = "") -> World:
    """Every leaf adds 1 / sqrt(SIZE) to each weight, an update of norm 1 for each part."""
    partition = {"w": "backbone", "k": "keys", "v": "values"}
    topology = parse_topology(TREE.replace("PRIVATE", private).replace("ALSO", also), "tree.yaml")
    world = World(topology, partition, {name: torch.zeros(SIZE) for name in partition})  # type: ignore[arg-type]

    def fit(context: Context) -> int:
        for tensor in context.state.parameters.values():
            tensor.add_(SIZE**-0.5)
        return 10

    for _ in range(num_rounds):
        run_round(world, [Averaging(), AttentionAggregation(), UpdatePrivacy()], fit)
    return world


def test_reliability_by_hand() -> None:
    assert [reliability(noise, 4.0) for noise in (0.0, 4.0, 12.0)] == [1.0, 0.5, 0.25]
    assert reliability(1.0, 0.0) == LEAST
    assert noise_of_mean([0.25, 0.75], [16.0, 0.0]) == 1.0


def test_the_signal_of_a_noisy_update_is_at_most_its_clip_norm() -> None:
    # 9 without noise; 25 - 21 = 4; 100 - 21 = 79, but at most 2^2; 20 - 21 is below 0
    signal = signal_square([1.0] * 4, [9.0, 25.0, 100.0, 20.0], [0.0, 21.0, 21.0, 21.0], [9.0, 2.0, 2.0, 2.0])
    assert signal == (9 + 4 + 4 + 0) / 4


def test_the_bound_of_a_federation() -> None:
    nodes = parse_topology(TREE.replace("PRIVATE", PRIVACY).replace("ALSO", "privacy: {clip_norm: 0.5}"), "t").nodes
    assert [update_bound(nodes[name]) for name in ("a1", "a2", "b1", "A", "B")] == [
        float("inf"), 1.0, 0.5, float("inf"), 0.5
    ]  # fmt: skip


def test_without_noise_nothing_changes() -> None:
    world = _run(2)
    for state in world.states.values():
        assert not any("noise" in memory for memory in state.memory.values())
    assert world.states["world"].parameters["w"].tolist() == pytest.approx([2 * SIZE**-0.5] * SIZE)


def test_a_private_node_does_not_ruin_the_others() -> None:
    """Its noise has norm 3 * sqrt(400) = 60 in each part, 60 times that of an update."""
    plain, noisy = _run(3), _run(3, private=PRIVACY)
    for name in ("world", "A", "B", "a1", "b1", "ear"):
        for key, tensor in plain.states[name].parameters.items():
            distance = float((noisy.states[name].parameters[key] - tensor).norm() / tensor.norm())
            assert distance < 0.05, (name, key)


def test_a_federation_of_private_nodes_follows_the_others() -> None:
    """B knows nothing but noise: it and its listener copy the world."""
    noisy = _run(4, also=PRIVACY)
    world, received = (noisy.states[name].parameters for name in ("world", "ear"))
    assert float(world["w"].norm()) == pytest.approx(4.0, rel=0.05)
    assert float((received["w"] - 3 * SIZE**-0.5).norm()) < 0.2  # what the world had when the round began
    assert float(noisy.states["B"].parameters["w"].norm()) == pytest.approx(3.0, rel=0.1)


def test_uploads_state_their_noise() -> None:
    seen: dict[str, Any] = {}

    class Tap(UpdatePrivacy):
        def on_aggregate(self, context: Context, uploads: list[Any]) -> None:
            seen.update({upload.node: upload for upload in uploads})

    partition = {"w": "backbone"}
    topology = parse_topology(TREE.replace("PRIVATE", PRIVACY).replace("ALSO", ""), "tree.yaml")
    world = World(topology, partition, {"w": torch.zeros(SIZE)})  # type: ignore[arg-type]

    def fit(context: Context) -> int:
        context.state.parameters["w"].add_(SIZE**-0.5)
        return 10

    run_round(world, [Averaging(), Tap()], fit)
    assert seen["a2"].noise_variance == {"backbone": 9.0}
    assert seen["a1"].noise_variance == seen["B"].noise_variance == {}
    (reliable,) = seen["A"].reliability.values()
    assert reliable == pytest.approx(0.5, abs=0.01)  # one of two nodes counts
    assert 0 < seen["A"].noise_variance["backbone"] < 1e-4
