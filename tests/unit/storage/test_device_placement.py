"""The choice of the memory in which nodes wait."""

from types import SimpleNamespace

import pytest
import torch

from worldlm.storage import device_placement
from worldlm.storage.device_placement import NodesOn, warn_of_little_memory, where_nodes_wait
from worldlm.topology import Node, Settings


@pytest.mark.parametrize(
    ("nodes_on", "device", "num_nodes", "expected"),
    [
        ("auto", "cpu", 1, "cpu"),
        ("auto", "cuda", 10, "cuda"),  # 10 nodes x 4 models x 1,000 bytes are half of 80,000
        ("auto", "cuda", 11, "cpu"),
        ("auto", "mps", 1, "cpu"),
        ("host", "cuda", 1, "cpu"),
        ("device", "cuda", 1000, "cuda"),
    ],
)
def test_nodes_wait_on_a_gpu_if_the_world_fills_at_most_half_of_it(
    nodes_on: NodesOn, device: str, num_nodes: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80_000))
    assert where_nodes_wait(nodes_on, torch.device(device), num_nodes, 1000).type == expected


@pytest.mark.parametrize(
    ("state", "processes", "needed"), [("keep", 1, 13), ("reset", 1, 5), ("keep", 2, 26), ("slices", 2, 18)]
)
def test_a_warning_is_logged_if_the_world_does_not_fit_into_memory(
    state: str, processes: int, needed: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slices = 2 if state == "slices" else 1
    settings = Settings(num_local_steps=1, optimizer_state="reset" if state == "reset" else "keep")
    leaves = [Node(name=name, corpus=name, settings=settings) for name in "abcd"]
    world = [Node(name="world", settings=settings, children=tuple(leaves)), *leaves]
    monkeypatch.setattr(device_placement, "free_memory", lambda: needed * 10**9)
    warn_of_little_memory(world, 10**9, processes, slices)
    assert not caplog.messages
    monkeypatch.setattr(device_placement, "free_memory", lambda: needed * 10**9 - 1)
    warn_of_little_memory(world, 10**9, processes, slices)
    assert f"will need {needed}.0 GB" in caplog.text
