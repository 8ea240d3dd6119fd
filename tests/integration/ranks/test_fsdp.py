"""Several processes that train one node together, each with a slice of the live module."""

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
    """Counts the numbers that a device holds between two steps: weights, their gradients and moments."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        parameters = [one for one in pl_module.parameters() if one.grad is not None]
        if parameters:
            states = [optimizer.state[one][name] for name in ("exp_avg", "exp_avg_sq") for one in parameters]
            gradients = [one.grad for one in parameters]
            self.numbers = [sum(map(_count, tensors)) for tensors in (parameters, gradients, states)]


def _count(tensor: Tensor) -> int:
    return local_part(tensor).numel()


def assert_close(found: dict[str, Any], alone: dict[str, Any], tolerance: float = 1e-5) -> None:
    """Nodes are alike, with all that they keep, and so are their optimizers, whole."""
    for name, state in found["world"]["states"].items():
        other = alone["world"]["states"][name]
        for figure in ("num_steps", "num_batches", "num_tokens", "bytes_up", "bytes_down", "participants"):
            assert state[figure] == other[figure]
        for key, value in state["parameters"].items():
            torch.testing.assert_close(value, other["parameters"][key], rtol=1e-4, atol=tolerance)
    assert found["optimizers"].keys() <= alone["optimizers"].keys()
    for name, kept in found["optimizers"].items():
        other = alone["optimizers"][name]
        assert kept["schedulers"] == other["schedulers"]
        assert kept["optimizer"]["param_groups"] == other["optimizer"]["param_groups"]
        torch.testing.assert_close(kept["optimizer"]["state"], other["optimizer"]["state"], rtol=1e-3, atol=tolerance)


SLICED: dict[str, Any] = {"devices_per_node": 2, "fully_shard": True}


@pytest.fixture
def run(whole: Make) -> Make:
    """Return `whole`, without the live module: a slice of it means nothing elsewhere."""

    def run(topology: Topology, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = whole(topology, **options)
        del found["all"]["live"]
        return found

    return run


def test_two_teams_of_two_are_one_device_with_the_whole(
    busy_tree: Topology, run: Make, on_ranks: Make, differences: Make
) -> None:
    options = {"gradient_clip_val": 0.3, "accumulate_grad_batches": 2}
    found, alone = on_ranks(4, lambda: run(busy_tree, **SLICED, **options)), run(busy_tree, **options)
    assert_close(found[0]["all"], alone["all"])
    assert found[0]["metrics"] == pytest.approx(alone["metrics"], rel=1e-4)
    assert found[0]["here"] == found[1]["here"] != found[2]["here"] == found[3]["here"]
    for one, other in ((0, 1), (2, 3)):  # who trains a node together holds the same of it, to the last bit
        assert differences(found[one]["all"], found[other]["all"]) == []


def test_slices_change_nothing(single: Topology, run: Make, on_ranks: Make, differences: Make) -> None:
    """They come to what two devices come to that hold all, to the last bit, in mixed precision too."""

    def train(precision: str, fully_shard: bool) -> Any:
        return run(single, devices_per_node=2, fully_shard=fully_shard, precision=precision)

    cases = [(precision, one) for precision in ("32-true", "bf16-mixed") for one in (True, False)]
    sliced, held, sliced_bf16, held_bf16 = on_ranks(2, lambda: [train(*case) for case in cases])[0]
    assert differences(sliced, held) == []
    assert differences(sliced_bf16, held_bf16) == []
    assert differences(sliced, sliced_bf16) != []


def test_three_devices_hold_a_third_each(star: Make, fit: Make, on_ranks: Make, snapshot: Make) -> None:
    """Of tensors that cannot be divided by three, too; a piece of the method pulls at the live weights."""
    clipped = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}
    topology = star("ab", a="settings: {batch_size: 3}", b="settings: {batch_size: 3}")

    def train(**options: Any) -> Any:
        held = Held()
        trainer = fit(topology, [Averaging(parts=PARTS), Proximal(1.0), held], **clipped, **options)
        return {"all": {**snapshot(trainer), "live": None}, "held": held.numbers}

    found, alone = on_ranks(3, lambda: train(devices_per_node=3, fully_shard=True)), train()
    assert_close(found[0]["all"], alone["all"])
    total = alone["held"][0]
    assert alone["held"] == [total, total, 2 * total]
    first, last = found[0]["held"][0], found[2]["held"][0]
    assert [rank["held"] for rank in found] == [[n, n, 2 * n] for n in (first, first, last)]
    assert 2 * first + last == total  # nothing is held twice
    assert first < 0.4 * total


class SaveRound(Callback):
    """Saves a checkpoint at the end of the first round."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.world.round == 0:
            trainer.save_checkpoint(self.path, weights_only=False)


def test_resume_with_slices_and_without(
    tree: Topology, run: Make, on_ranks: Make, save_everywhere: Make, tmp_path: Path, make_module: Make
) -> None:
    """A checkpoint says nothing of slices; one that was saved within a round can be gone on from in slices."""
    saver, path = save_everywhere("on_train_batch_end"), tmp_path / "sliced.ckpt"
    alone = run(tree, callbacks=[saver])

    def resumed(file: Path, **options: Any) -> Any:
        return run(tree, resume=file, module=make_module(99), **options)["all"]

    def job() -> list[Any]:
        run(tree, callbacks=[SaveRound(path)], **SLICED)
        within, paging = saver.saved[3], Paging(cache_gb=0.0)
        return [
            resumed(path, **SLICED, paging=paging), resumed(within, **SLICED), resumed(path, devices_per_node=2)
        ]  # fmt: skip

    for one in on_ranks(2, job)[0]:
        assert_close(one, alone["all"])
    assert_close(resumed(path), alone["all"])
    found, kept = (torch.load(file, weights_only=True) for file in (path, saver.saved[-1]))
    assert _shapes(found["state_dict"]) == _shapes(kept["state_dict"])
    assert _shapes(found["optimizer_states"]) == _shapes(kept["optimizer_states"])
    optimizers = [one["loops"]["fit_loop"]["state_dict"]["optimizers"] for one in (found, kept)]
    assert _shapes(optimizers[0]) == _shapes(optimizers[1])
    tied = [found["state_dict"][name] for name in ("model.lm_head.weight", "model.transformer.wte.weight")]
    assert tied[0].data_ptr() == tied[1].data_ptr()  # once in the file


def _shapes(nest: Any) -> Any:
    if isinstance(nest, dict):
        return {key: _shapes(one) for key, one in nest.items()}
    if isinstance(nest, list):
        return [_shapes(one) for one in nest]
    return (type(nest), nest.shape, nest.dtype) if isinstance(nest, Tensor) else type(nest)


def test_another_fit_goes_on_in_slices(
    star: Make, trainer_for: Make, make_module: Make, make_data: Make, on_ranks: Make
) -> None:
    topology = star("ab")

    def twice(**options: Any) -> tuple[Any, str]:
        module, told = make_module(), ""
        trainer = trainer_for(topology, [Averaging(parts=PARTS)], max_epochs=1, **options)
        trainer.fit(module, datamodule=make_data())
        trainer.fit_loop.max_epochs = 2
        trainer.fit(module, datamodule=make_data())
        try:
            trainer_for(topology, **options).fit(module, datamodule=make_data())
        except ValueError as error:
            told = str(error)
        return trainer.world.states["a"].parameters, told

    (found, told), _ = on_ranks(2, lambda: twice(**SLICED))
    torch.testing.assert_close(found, twice()[0], rtol=1e-4, atol=1e-5)
    assert told == "the module was divided over devices by an earlier fit (fully_shard): build it anew"


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
