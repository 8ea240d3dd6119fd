"""Several processes that train one node together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from worldlm.topology import Topology

Make = Callable[..., Any]


@pytest.mark.parametrize(("number", "size"), [(2, 2), (4, 2)])
def test_two_devices_of_half_the_batch_are_one_of_the_whole(
    number: int, size: int, busy_tree: Topology, whole: Make, on_ranks: Make, differences: Make
) -> None:
    found = on_ranks(number, lambda: whole(busy_tree, devices_per_node=size, gradient_clip_val=1.0))
    alone = whole(busy_tree, gradient_clip_val=1.0)
    states = alone["all"]["world"]["states"]
    for name, state in found[0]["all"]["world"]["states"].items():
        for figure in ("num_steps", "num_batches", "num_tokens", "bytes_up", "bytes_down", "participants"):
            assert state[figure] == states[name][figure]
        for key, value in state["parameters"].items():
            torch.testing.assert_close(value, states[name]["parameters"][key], rtol=1e-4, atol=1e-5)
    for rank in range(0, number, size):  # who trains a node together holds the same of it, to the last bit
        assert [found[rank + i]["here"] for i in range(size)] == [found[rank]["here"]] * size
        assert differences(found[rank]["all"]["live"], found[rank + 1]["all"]["live"]) == []


def test_batches_that_cannot_be_shared(star: Make, whole: Make, on_ranks: Make) -> None:
    def refused() -> str:
        with pytest.raises(ValueError) as caught:
            whole(star("ab", b="settings: {batch_size: 3}"), devices_per_node=2)
        return str(caught.value)

    assert on_ranks(2, refused) == ["b: 2 devices cannot share its batches of 3 alike; see devices_per_node"] * 2
