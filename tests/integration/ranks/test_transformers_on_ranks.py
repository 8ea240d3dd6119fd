"""Models of transformers on several processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from families import tiny_module

from worldlm.topology import Topology

Make = Callable[..., Any]


FAMILIES = ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "qwen3"))]


@pytest.mark.parametrize("name", FAMILIES)
def test_two_processes_equal_one(
    name: str, tree_without_noise: Topology, whole: Make, on_ranks: Make, differences: Make
) -> None:
    ranks = on_ranks(2, lambda: whole(tree_without_noise, module=tiny_module(name)))
    assert (
        differences(ranks[0]["all"]["world"], whole(tree_without_noise, module=tiny_module(name))["all"]["world"]) == []
    )


@pytest.mark.parametrize("name", ["llama", pytest.param("llama_untied", marks=pytest.mark.slow)])
def test_sharding_gives_the_result_of_ddp(
    name: str, single: Topology, whole: Make, on_ranks: Make, differences: Make
) -> None:
    """Two devices with shards and two devices with the whole model agree bit for bit, also in mixed precision."""

    def train(precision: str, fully_shard: bool) -> Any:
        found = whole(
            single, devices_per_node=2, fully_shard=fully_shard, precision=precision, module=tiny_module(name)
        )
        del found["all"]["live"]
        return found

    cases = [(precision, fully_shard) for precision in ("32-true", "bf16-mixed") for fully_shard in (True, False)]
    fsdp, ddp, fsdp_bf16, ddp_bf16 = on_ranks(2, lambda: [train(*case) for case in cases])[0]
    assert differences(fsdp, ddp) == []
    assert differences(fsdp_bf16, ddp_bf16) == []
    assert differences(fsdp, fsdp_bf16) != []
