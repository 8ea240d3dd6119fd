"""Adapters of a frozen model in several processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import adapted, write_base
from lightning.pytorch import Callback

from worldlm.callbacks import AlternatingAdapters, Averaging, UpdatePrivacy
from worldlm.models import LanguageModule, Lora
from worldlm.storage.pages import fetch
from worldlm.topology import Topology

Make = Callable[..., Any]


class Synchronised(Callback):
    """Notes which frozen weights DDP would send to the other devices before each step."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def on_train_batch_start(self, trainer: Any, pl_module: LanguageModule, batch: Any, batch_idx: int) -> None:
        ignored = getattr(trainer.strategy.model, "parameters_to_ignore", pl_module.frozen)
        self.names = [name for name in pl_module.frozen if name not in ignored]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with a tiny Llama."""
    write_base(tmp_path / "base", "llama", vocab_size=32)
    return tmp_path / "base"


@pytest.mark.parametrize("alternating", [False, True])
def test_two_processes_give_the_result_of_one(
    alternating: bool, busy_tree: Topology, base: Path, whole: Make, on_ranks: Make, differences: Make
) -> None:
    def train() -> Any:
        more = [AlternatingAdapters()] if alternating else []
        return whole(busy_tree, module=adapted(base, Lora(rank=2)), callbacks=more)

    ranks, alone = on_ranks(2, train), train()
    assert differences(ranks[0]["all"], alone["all"]) == []
    assert sorted(name for rank in ranks for name in rank["local"]) == sorted(busy_tree.nodes)


@pytest.mark.parametrize("alternating", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fully_shard", [False, True])
def test_two_devices_that_share_a_node_each_have_the_frozen_weights(
    fully_shard: bool,
    alternating: bool,
    tree_without_noise: Topology,
    base: Path,
    fit: Make,
    on_ranks: Make,
    snapshot: Make,
) -> None:
    def train(**options: Any) -> Any:
        module, synchronised = adapted(base, Lora(rank=2)), Synchronised()
        trainer = fit(
            tree_without_noise,
            [Averaging(), UpdatePrivacy(), synchronised, *([AlternatingAdapters()] if alternating else [])],
            module=module,
            limit_val_batches=0,
            **options,
        )
        assert synchronised.names == []
        frozen = {name: module.get_buffer(name) for name in module.frozen}
        return {"states": fetch(snapshot(trainer))["world"]["states"], "frozen": frozen}

    # AdamW has no moments of A before the second round: its first steps amplify rounding, to far below the 1e-2 of lr
    tolerance, alone = 1e-4 if alternating else 1e-5, train()
    for rank in on_ranks(2, lambda: train(devices_per_node=2, fully_shard=fully_shard)):
        for name, tensor in alone["frozen"].items():
            assert torch.equal(rank["frozen"][name], tensor), name
        for name, state in rank["states"].items():
            for key, value in state["parameters"].items():
                expected = alone["states"][name]["parameters"][key]
                torch.testing.assert_close(value, expected, rtol=1e-4, atol=tolerance)


def test_frozen_weights_that_differ_between_processes_are_an_error(
    star: Make, tmp_path: Path, base: Path, fit: Make, on_ranks: Make
) -> None:
    write_base(tmp_path / "other", "llama", vocab_size=32, seed=9)

    def job() -> str:
        import torch.distributed as dist
        from lightning.pytorch.utilities import rank_zero_only

        folder = base if rank_zero_only.rank == 0 else tmp_path / "other"
        try:
            fit(star(), [Averaging()], module=adapted(folder, Lora(rank=2)), limit_val_batches=0)
        except ValueError as error:
            dist.barrier()
            return str(error)
        return ""

    for message in on_ranks(2, job):
        assert "the digest of the frozen model (init_from) is" in message
