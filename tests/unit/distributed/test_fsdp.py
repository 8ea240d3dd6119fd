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
    """A module with the model below it, as a LightningModule has."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def mpt() -> Whole:
    return Whole(MPT(Architecture(num_blocks=2, d_model=4, num_heads=2, max_seq_len=4, vocab_size=5)))


@pytest.fixture(params=[0, 1, 2])
def team(request: pytest.FixtureRequest) -> Iterator[DeviceMesh]:
    """Three processes, of which this is one."""
    dist.init_process_group("fake", store=FakeStore(), rank=request.param, world_size=3)
    yield init_device_mesh("cpu", (3,))
    dist.destroy_process_group()


def test_every_process_cuts_its_own_slice_out_of_a_whole(team: DeviceMesh) -> None:
    module = mpt()
    whole = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    shard_(module, team)
    own = team.get_local_rank()
    for name, parameter in module.named_parameters():
        assert isinstance(parameter, DTensor)
        assert torch.equal(local_part(parameter), local_shard(whole[name], parameter))
    assert [local_part(one).shape[0] for one in module.parameters()][:2] == [(2, 2, 1)[own], (2, 2, 0)[own]]
    assert whole.keys() == dict(module.named_parameters()).keys()
    divided = [name for name, one in module.named_modules() if isinstance(one, FSDPModule)]
    assert divided == ["model", "model.transformer.blocks.0", "model.transformer.blocks.1"]


def test_moments_wait_in_slices_whether_they_were_saved_whole_or_so(team: DeviceMesh) -> None:
    module = mpt()
    shard_(module, team)
    parameter = module.get_parameter("model.transformer.norm_f.weight")
    moment, step, device = torch.arange(4.0), torch.tensor(3.0), torch.device("cpu")
    saved = {"state": {0: {"step": step, "exp_avg": moment}}, "param_groups": []}
    kept = shard_optimizer_state(saved, [parameter])["state"][0]
    assert (
        shard_optimizer_state({"state": {0: kept}}, [parameter])["state"][0]["exp_avg"]["slice"]
        is kept["exp_avg"]["slice"]
    )
    found = onload(kept["exp_avg"], parameter, device)
    assert isinstance(found, DTensor)
    assert found.shape == parameter.shape
    assert local_part(found).tolist() == ([0.0, 1.0], [2.0, 3.0], [])[team.get_local_rank()]
    assert onload(kept["step"], parameter, device) is step
    again = offload(found)
    assert again.keys() == kept["exp_avg"].keys()
    assert all(not isinstance(one, DTensor) for one in again.values())
    assert torch.equal(local_part(onload(again, parameter, device)), local_part(found))
    with pytest.raises(ValueError, match=r"divided over devices by an earlier fit \(fully_shard\): build it anew"):
        shard_(module, team)


@pytest.mark.parametrize("team", [0], indirect=True)
def test_modules_that_cannot_be_divided(team: DeviceMesh) -> None:
    alone = Whole(nn.Linear(2, 2))
    alone.scale = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="fully_shard: the parameter scale is of the module itself; each must"):
        shard_(alone, team)
    shared = mpt()
    blocks = shared.get_submodule("model.transformer.blocks")
    blocks[1].norm_1.weight = blocks[0].norm_1.weight
    with pytest.raises(ValueError, match=r"the parameter model\.transformer\.blocks\.0\.norm_1\.weight is shared by 2"):
        shard_(shared, team)
    assert not any(isinstance(one, DTensor) for one in (*alone.parameters(), *shared.parameters()))
