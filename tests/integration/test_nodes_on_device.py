"""Nodes that wait and are merged on the GPU that trains them. Without a GPU these tests are skipped."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from worldlm.callbacks import AttentionAggregation, Averaging, Compression, FedAMP, TokenRows, UpdatePrivacy
from worldlm.topology import Topology

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def needs_a_gpu(accelerator: str) -> None:
    if accelerator == "cpu":
        pytest.skip("needs --accelerator gpu")


def devices(nest: Any) -> set[str]:
    """Return the device types of all tensors except scalars."""
    if isinstance(nest, Tensor):
        return {nest.device.type} if nest.dim() else set()
    values = nest.values() if isinstance(nest, Mapping) else nest if isinstance(nest, list | tuple) else ()
    return set().union(*map(devices, values))


@pytest.mark.parametrize("more", [False, True], ids=["paper", "rows and rounding"])
def test_device_and_host_give_the_same_result_except_for_rounding(
    more: bool, busy_tree: Topology, fit: Make, whole_method: Make, snapshot: Make
) -> None:
    def run(where: str) -> dict[str, Any]:
        rounding = [Averaging(), TokenRows(), AttentionAggregation(), UpdatePrivacy(), Compression()]
        states = snapshot(fit(busy_tree, rounding if more else whole_method(), nodes_on=where))["world"]["states"]
        kinds = devices([state["parameters"] for state in states.values()])
        assert kinds == {"cuda" if where == "device" else "cpu"}
        return dict(states)

    on_device, on_host = run("device"), run("host")
    for name, state in on_device.items():
        assert state["bytes_up"] == on_host[name]["bytes_up"]
        for key, tensor in state["parameters"].items():  # the tolerance covers a rounding step of int8
            torch.testing.assert_close(tensor.cpu(), on_host[name]["parameters"][key], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("method", ["whole", "mixtures"])
def test_resume_within_a_round_is_exact(
    method: str, busy_tree: Topology, star: Make, whole_method: Make, resume_from_all: Make
) -> None:
    tree, build = (busy_tree, whole_method) if method == "whole" else (star("abc"), lambda: [FedAMP()])
    hooks = ("on_train_batch_end", "on_train_epoch_end")
    assert resume_from_all(tree, build, hooks, every=4, nodes_on="device") > 4


def test_a_run_moves_between_host_and_device(
    busy_tree: Topology, fit: Make, whole_method: Make, save_everywhere: Make, snapshot: Make
) -> None:
    for before, after in (("device", "host"), ("host", "device")):
        saver = save_everywhere("on_train_batch_end")
        fit(busy_tree, [*whole_method(), saver], nodes_on=before)
        states = snapshot(fit(busy_tree, whole_method(), resume=saver.saved[3], nodes_on=after))["world"]["states"]
        kinds = devices([(state["parameters"], state["memory"]) for state in states.values()])
        assert kinds == {"cuda" if after == "device" else "cpu"}
