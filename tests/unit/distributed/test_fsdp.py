"""A sharded module in one process of a team. The other processes do not answer, so nothing is gathered."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from worldlm.distributed.fsdp import local_part, local_shard, offload, onload, shard_, shard_optimizer_state
from worldlm.models import Architecture
from worldlm.models.mpt import MPT


class Whole(nn.Module):
    """A module with the model as a submodule, like a LightningModule."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def mpt() -> Whole:
    return Whole(MPT(Architecture(num_blocks=2, d_model=4, num_heads=2, max_seq_len=4, vocab_size=5)))


@pytest.fixture(params=[0, 1, 2])
def team(request: pytest.FixtureRequest) -> Iterator[DeviceMesh]:
    """A mesh of three processes; this process is one of them."""
    dist.init_process_group("fake", store=FakeStore(), rank=request.param, world_size=3)
    yield init_device_mesh("cpu", (3,))
    dist.destroy_process_group()


def test_every_process_takes_its_shard_of_a_whole_tensor(team: DeviceMesh) -> None:
    module = mpt()
    whole = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    shard_(module, team)
    rank = team.get_local_rank()
    for name, parameter in module.named_parameters():
        assert isinstance(parameter, DTensor)
        assert torch.equal(local_part(parameter), local_shard(whole[name], parameter))
    num_rows = [local_part(parameter).shape[0] for parameter in module.parameters()]
    assert num_rows[:2] == [(2, 2, 1)[rank], (2, 2, 0)[rank]]
    assert whole.keys() == dict(module.named_parameters()).keys()
    sharded = [name for name, submodule in module.named_modules() if isinstance(submodule, FSDPModule)]
    assert sharded == ["model", "model.transformer.blocks.0", "model.transformer.blocks.1"]


def test_moments_wait_as_shards_whether_they_were_saved_whole_or_as_shards(team: DeviceMesh) -> None:
    module = mpt()
    shard_(module, team)
    parameter = module.get_parameter("model.transformer.norm_f.weight")
    moment, step, device = torch.arange(4.0), torch.tensor(3.0), torch.device("cpu")
    saved = {"state": {0: {"step": step, "exp_avg": moment}}, "param_groups": []}
    sharded = shard_optimizer_state(saved, [parameter])["state"][0]
    assert (
        shard_optimizer_state({"state": {0: sharded}}, [parameter])["state"][0]["exp_avg"]["slice"]
        is sharded["exp_avg"]["slice"]
    )
    onloaded = onload(sharded["exp_avg"], parameter, device)
    assert isinstance(onloaded, DTensor)
    assert onloaded.shape == parameter.shape
    assert local_part(onloaded).tolist() == ([0.0, 1.0], [2.0, 3.0], [])[team.get_local_rank()]
    assert onload(sharded["step"], parameter, device) is step
    offloaded = offload(onloaded)
    assert offloaded.keys() == sharded["exp_avg"].keys()
    assert all(not isinstance(value, DTensor) for value in offloaded.values())
    assert torch.equal(local_part(onload(offloaded, parameter, device)), local_part(onloaded))
    with pytest.raises(
        ValueError, match=r"an earlier fit sharded the module over devices \(fully_shard\): build a new"
    ):
        shard_(module, team)


@pytest.mark.parametrize("team", [0], indirect=True)
def test_modules_that_cannot_be_sharded(team: DeviceMesh) -> None:
    alone = Whole(nn.Linear(2, 2))
    alone.scale = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="fully_shard: the parameter scale belongs to the module itself; each must"):
        shard_(alone, team)
    shared = mpt()
    blocks = shared.get_submodule("model.transformer.blocks")
    blocks[1].norm_1.weight = blocks[0].norm_1.weight
    with pytest.raises(ValueError, match=r"the parameter model\.transformer\.blocks\.0\.norm_1\.weight is shared by 2"):
        shard_(shared, team)
    assert not any(isinstance(parameter, DTensor) for parameter in (*alone.parameters(), *shared.parameters()))
