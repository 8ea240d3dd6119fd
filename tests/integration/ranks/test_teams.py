"""Several processes that train one node together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from worldlm.topology import Topology

Make = Callable[..., Any]


@pytest.mark.parametrize(("number", "size"), [(2, 2), (4, 2)])
def test_two_devices_with_half_the_batch_give_the_result_of_one(
    number: int, size: int, tree_without_noise: Topology, whole: Make, on_ranks: Make, differences: Make
) -> None:
    ranks = on_ranks(number, lambda: whole(tree_without_noise, devices_per_node=size, gradient_clip_val=1.0))
    alone = whole(tree_without_noise, gradient_clip_val=1.0)
    states = alone["all"]["world"]["states"]
    for name, state in ranks[0]["all"]["world"]["states"].items():
        for figure in ("num_steps", "num_batches", "num_tokens", "bytes_up", "bytes_down", "participants"):
            assert state[figure] == states[name][figure]
        for key, value in state["parameters"].items():
            torch.testing.assert_close(value, states[name]["parameters"][key], rtol=1e-4, atol=1e-5)
    for rank in range(0, number, size):  # the ranks of a team have the same nodes, bit for bit
        assert [ranks[rank + i]["local"] for i in range(size)] == [ranks[rank]["local"]] * size
        assert differences(ranks[rank]["all"]["live"], ranks[rank + 1]["all"]["live"]) == []


def test_batches_that_cannot_be_divided_are_rejected(star: Make, whole: Make, on_ranks: Make) -> None:
    def rejected() -> str:
        with pytest.raises(ValueError) as caught:
            whole(star("ab", b="settings: {batch_size: 3}"), devices_per_node=2)
        return str(caught.value)

    message = "b: its batches of 3 cannot be divided evenly among 2 devices; see devices_per_node"
    assert on_ranks(2, rejected) == [message] * 2
