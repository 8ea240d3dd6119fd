"""Validation of the optimizer states in a checkpoint."""

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from worldlm.trainer.node_slot import NodeOptimizer


def make_optimizer() -> NodeOptimizer:
    """Return an optimizer that has taken a step, with a schedule."""
    parameters = [torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(4))]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    optimizer.step()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    return NodeOptimizer(optimizer, [SimpleNamespace(scheduler=schedule)])


def test_a_saved_state_is_restored() -> None:
    saved, other = deepcopy(make_optimizer().state_dict()), make_optimizer()
    saved["optimizer"]["state"][1]["exp_avg"] += 1
    saved["schedulers"][0]["last_epoch"] = 7
    other.load_state_dict(saved)
    assert other.state_dict()["optimizer"]["state"][1]["exp_avg"].tolist() == pytest.approx([1.1] * 4)
    assert other.state_dict()["schedulers"][0]["last_epoch"] == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved["optimizer"]["state"][1].pop("exp_avg"), "does not have the same entries for all weights"),
        (
            lambda saved: saved["optimizer"]["state"][1].update(exp_avg=torch.ones(3)),
            r"exp_avg has shape \[3\], but its weights have shape \[4\]",
        ),
        (lambda saved: saved["optimizer"]["state"][1].update(exp_avg=None), "AttributeError"),
        (lambda saved: saved["optimizer"]["param_groups"].clear(), "zip"),
        (lambda saved: saved["schedulers"][0].update(last_epoch="x"), "last_epoch is x, but 0 in this run"),
        (lambda saved: saved["schedulers"][0].update(base_lrs=["x"]), r"base_lrs is \['x'\], but \[0.1\] in this run"),
        (lambda saved: saved["optimizer"]["param_groups"][0].update(lr={}), "lr is {}, but 0.1 in this run"),
        (lambda saved: saved["optimizer"]["param_groups"][0].update(amsgrad=3), "amsgrad is 3, but False in this run"),
        (lambda saved: saved["optimizer"]["param_groups"][0].update(betas=[0.9]), r"betas is \[0.9\], but \(0.9"),
        (lambda saved: saved["schedulers"].clear(), "zip"),
    ],
)
def test_an_invalid_state_is_rejected(change: Any, message: str) -> None:
    saved = deepcopy(make_optimizer().state_dict())
    change(saved)
    with pytest.raises(ValueError, match=message):
        make_optimizer().load_state_dict(saved)
