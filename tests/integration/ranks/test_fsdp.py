"""Several processes that train one node together, each with a shard of the live module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from worldlm.callbacks import Averaging, Proximal
from worldlm.distributed.fsdp import local_part
from worldlm.distributed.transport import RankLost
from worldlm.federation.parameters import PARTS
from worldlm.storage.paged_store import Paging
from worldlm.topology import Topology

Make = Callable[..., Any]


class Held(Callback):
    """Counts the elements that a device holds between two steps: weights, gradients and moments."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        parameters = [parameter for parameter in pl_module.parameters() if parameter.grad is not None]
        if parameters:
            states = [optimizer.state[parameter] for parameter in parameters]
            moments = [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")]
            gradients = [parameter.grad for parameter in parameters]
            self.numbers = [sum(map(_count, tensors)) for tensors in (parameters, gradients, moments)]


def _count(tensor: Tensor) -> int:
    return local_part(tensor).numel()


def assert_close(sharded: dict[str, Any], alone: dict[str, Any], tolerance: float = 1e-5) -> None:
    """Check that the nodes and the whole optimizer states of two runs are close."""
    for name, state in sharded["world"]["states"].items():
        other = alone["world"]["states"][name]
        for figure in ("num_steps", "num_batches", "num_tokens", "bytes_up", "bytes_down", "participants"):
            assert state[figure] == other[figure]
        for key, value in state["parameters"].items():
            torch.testing.assert_close(value, other["parameters"][key], rtol=1e-4, atol=tolerance)
    assert sharded["optimizers"].keys() <= alone["optimizers"].keys()
    for name, state in sharded["optimizers"].items():
        other = alone["optimizers"][name]
        assert state["schedulers"] == other["schedulers"]
        assert state["optimizer"]["param_groups"] == other["optimizer"]["param_groups"]
        torch.testing.assert_close(state["optimizer"]["state"], other["optimizer"]["state"], rtol=1e-3, atol=tolerance)


SHARDED: dict[str, Any] = {"devices_per_node": 2, "fully_shard": True}


@pytest.fixture
def run(whole: Make) -> Make:
    """Return `whole`, without the live module, of which every rank has only a shard."""

    def run(topology: Topology, **options: Any) -> dict[str, Any]:
        result: dict[str, Any] = whole(topology, **options)
        del result["all"]["live"]
        return result

    return run


def test_two_sharding_teams_of_two_give_the_result_of_one_device(
    tree_without_noise: Topology, run: Make, on_ranks: Make, differences: Make
) -> None:
    options = {"gradient_clip_val": 0.3, "accumulate_grad_batches": 2}
    ranks = on_ranks(4, lambda: run(tree_without_noise, **SHARDED, **options))
    alone = run(tree_without_noise, **options)
    assert_close(ranks[0]["all"], alone["all"])
    assert ranks[0]["metrics"] == pytest.approx(alone["metrics"], rel=1e-4)
    assert ranks[0]["local"] == ranks[1]["local"] != ranks[2]["local"] == ranks[3]["local"]
    for first, second in ((0, 1), (2, 3)):  # the ranks of a team have the same nodes, bit for bit
        assert differences(ranks[first]["all"], ranks[second]["all"]) == []


def test_sharding_gives_the_result_of_ddp(single: Topology, run: Make, on_ranks: Make, differences: Make) -> None:
    """Two devices with shards and two devices with the whole model agree bit for bit, also in mixed precision."""

    def train(precision: str, fully_shard: bool) -> Any:
        return run(single, devices_per_node=2, fully_shard=fully_shard, precision=precision)

    cases = [(precision, fully_shard) for precision in ("32-true", "bf16-mixed") for fully_shard in (True, False)]
    fsdp, ddp, fsdp_bf16, ddp_bf16 = on_ranks(2, lambda: [train(*case) for case in cases])[0]
    assert differences(fsdp, ddp) == []
    assert differences(fsdp_bf16, ddp_bf16) == []
    assert differences(fsdp, fsdp_bf16) != []


def test_three_devices_hold_a_third_each(star: Make, fit: Make, on_ranks: Make, snapshot: Make) -> None:
    """Also of tensors that cannot be divided by three, and with a callback that changes the live gradients."""
    clipped = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}
    topology = star("ab", a="settings: {batch_size: 3}", b="settings: {batch_size: 3}")

    def train(**options: Any) -> Any:
        held = Held()
        trainer = fit(topology, [Averaging(parts=PARTS), Proximal(1.0), held], **clipped, **options)
        return {"all": {**snapshot(trainer), "live": None}, "held": held.numbers}

    ranks, alone = on_ranks(3, lambda: train(devices_per_node=3, fully_shard=True)), train()
    assert_close(ranks[0]["all"], alone["all"])
    total = alone["held"][0]
    assert alone["held"] == [total, total, 2 * total]
    first, last = ranks[0]["held"][0], ranks[2]["held"][0]
    assert [rank["held"] for rank in ranks] == [[n, n, 2 * n] for n in (first, first, last)]
    assert 2 * first + last == total  # no element is held twice
    assert first < 0.4 * total


class SaveRound(Callback):
    """Saves a checkpoint at the end of the first round."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.world.round == 0:
            trainer.save_checkpoint(self.path, weights_only=False)


@pytest.mark.slow
def test_resume_with_and_without_sharding(
    tree_without_noise: Topology, run: Make, on_ranks: Make, save_everywhere: Make, tmp_path: Path, make_module: Make
) -> None:
    """Checkpoints hold whole tensors. A sharded run can also resume from one that was saved within a round."""
    saver, path = save_everywhere("on_train_batch_end"), tmp_path / "sharded.ckpt"
    alone = run(tree_without_noise, callbacks=[saver])

    def resumed(file: Path, **options: Any) -> Any:
        return run(tree_without_noise, resume=file, module=make_module(99), **options)["all"]

    def job() -> list[Any]:
        run(tree_without_noise, callbacks=[SaveRound(path)], **SHARDED)
        within, paging = saver.saved[3], Paging(cache_gb=0.0)
        return [
            resumed(path, **SHARDED, paging=paging), resumed(within, **SHARDED), resumed(path, devices_per_node=2)
        ]  # fmt: skip

    for state in on_ranks(2, job)[0]:
        assert_close(state, alone["all"])
    assert_close(resumed(path), alone["all"])
    sharded, whole = (torch.load(file, weights_only=True) for file in (path, saver.saved[-1]))
    assert _shapes(sharded["state_dict"]) == _shapes(whole["state_dict"])
    optimizers = [checkpoint["loops"]["fit_loop"]["state_dict"]["optimizers"] for checkpoint in (sharded, whole)]
    assert _shapes(optimizers[0]) == _shapes(optimizers[1])
    tied = [sharded["state_dict"][name] for name in ("model.lm_head.weight", "model.transformer.wte.weight")]
    assert tied[0].data_ptr() == tied[1].data_ptr()  # saved once


def _shapes(nest: Any) -> Any:
    if isinstance(nest, dict):
        return {key: _shapes(inner) for key, inner in nest.items()}
    if isinstance(nest, list):
        return [_shapes(inner) for inner in nest]
    return (type(nest), nest.shape, nest.dtype) if isinstance(nest, Tensor) else type(nest)


def test_a_second_fit_continues_with_the_sharded_module(
    star: Make, trainer_for: Make, make_module: Make, make_data: Make, on_ranks: Make
) -> None:
    topology = star("ab")

    def twice(**options: Any) -> tuple[Any, str]:
        module, message = make_module(), ""
        trainer = trainer_for(topology, [Averaging(parts=PARTS)], max_epochs=1, **options)
        trainer.fit(module, datamodule=make_data())
        trainer.fit_loop.max_epochs = 2
        trainer.fit(module, datamodule=make_data())
        try:
            trainer_for(topology, **options).fit(module, datamodule=make_data())
        except ValueError as error:
            message = str(error)
        return trainer.world.states["a"].parameters, message

    (weights, message), _ = on_ranks(2, lambda: twice(**SHARDED))
    torch.testing.assert_close(weights, twice()[0], rtol=1e-4, atol=1e-5)
    assert message == "an earlier fit sharded the module over devices (fully_shard): build a new module"


class Fail(Callback):
    """Fails in the second round, at one rank."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.world.round == 1 and trainer.global_rank == 1:
            raise OSError("the machine is gone")


@pytest.mark.parametrize("fully_shard", [False, True])
def test_a_lost_member_ends_the_team(fully_shard: bool, star: Make, fit: Make, on_ranks: Make) -> None:
    def train() -> str:
        with pytest.raises((RankLost, OSError)) as caught:
            fit(star("ab"), [Averaging(), Fail()], devices_per_node=2, fully_shard=fully_shard)
        return str(caught.value)

    first, second = on_ranks(2, train)
    assert second == "the machine is gone"
    assert first.startswith("another process of the run is gone (")
