"""What an optimizer of a checkpoint may hold."""

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from worldlm.trainer.node_slot import NodeOptimizer


def made() -> NodeOptimizer:
    """An optimizer that has taken a step, with a schedule."""
    parameters = [torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(4))]
    for one in parameters:
        one.grad = torch.ones_like(one)
    own = torch.optim.AdamW(parameters, lr=0.1)
    own.step()
    schedule = torch.optim.lr_scheduler.LambdaLR(own, lambda step: 1 / (1 + step))
    return NodeOptimizer(own, [SimpleNamespace(scheduler=schedule)])


def test_what_was_saved_is_restored() -> None:
    saved, other = deepcopy(made().state_dict()), made()
    saved["optimizer"]["state"][1]["exp_avg"] += 1
    saved["schedulers"][0]["last_epoch"] = 7
    other.load_state_dict(saved)
    assert other.state_dict()["optimizer"]["state"][1]["exp_avg"].tolist() == pytest.approx([1.1] * 4)
    assert other.state_dict()["schedulers"][0]["last_epoch"] == 7


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda saved: saved["optimizer"]["state"][1].pop("exp_avg"), "not the same is kept of all weights"),
        (
            lambda saved: saved["optimizer"]["state"][1].update(exp_avg=torch.ones(3)),
            r"exp_avg of shape \[3\] for .* \[4\]",
        ),
        (lambda saved: saved["optimizer"]["state"][1].update(exp_avg=None), "AttributeError"),
        (lambda saved: saved["optimizer"]["param_groups"].clear(), "zip"),
        (lambda saved: saved["schedulers"][0].update(last_epoch="x"), "last_epoch is x, and here 0"),
        (lambda saved: saved["schedulers"][0].update(base_lrs=["x"]), r"base_lrs is \['x'\], and here \[0.1\]"),
        (lambda saved: saved["optimizer"]["param_groups"][0].update(lr={}), "lr is {}, and here 0.1"),
        (lambda saved: saved["optimizer"]["param_groups"][0].update(amsgrad=3), "amsgrad is 3, and here False"),
        (lambda saved: saved["optimizer"]["param_groups"][0].update(betas=[0.9]), r"betas is \[0.9\], and here \(0.9"),
        (lambda saved: saved["schedulers"].clear(), "zip"),
    ],
)
def test_what_no_run_would_have_saved_is_refused(change: Any, told: str) -> None:
    saved = deepcopy(made().state_dict())
    change(saved)
    with pytest.raises(ValueError, match=told):
        made().load_state_dict(saved)
