"""The stores of waiting nodes: what they keep in memory and on disk."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from worldlm.federation.messages import Download, Residual, Upload
from worldlm.federation.state import NodeState
from worldlm.rounds.program import fit_order
from worldlm.storage.node_store import NodeStore
from worldlm.storage.paged_store import PagedStore, Paging
from worldlm.storage.pages import PagedTensor
from worldlm.topology import Node, Settings, Topology

SIZE = 2048
"""Number of parameters of a model: 8 kB."""


def draw(seed: int) -> Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def topology() -> Topology:
    settings = Settings(num_local_steps=1)
    leaves = tuple(Node(name=name, corpus=name, settings=settings) for name in "abcd")
    return Topology(name="star", root=Node(name="world", settings=settings, children=leaves))


def make(topology: Topology, folder: Path, num_cached: float = 0) -> tuple[PagedStore, dict[str, NodeState]]:
    store = PagedStore(topology, fit_order(topology), Paging(cache_gb=num_cached * (4 * SIZE + 4) / 1e9), folder)
    states = {
        name: NodeState(parameters=store.initial_weights({"w": draw(0), "s": torch.zeros(1)}))
        for name in topology.nodes
    }
    store.register(states)
    return store, states


def in_memory(states: dict[str, NodeState]) -> list[str]:
    return [name for name, state in states.items() if not isinstance(state.parameters["w"], PagedTensor)]


def pages(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_all_nodes_start_from_one_page(topology: Topology, tmp_path: Path) -> None:
    store, states = make(topology, tmp_path)
    assert len(pages(tmp_path)) == 1
    assert in_memory(states) == []
    store.load("a")
    states["a"].parameters["w"].add_(1.0)
    states["a"].parameters["s"].add_(1.0)
    assert torch.equal(states["b"].parameters["w"], draw(0))
    assert states["b"].parameters["s"].item() == 0.0  # small tensors are in memory, and every node has its own copy


@pytest.mark.parametrize("num_cached", [0, 1, 2.5])
def test_the_cache_holds_nodes_besides_the_active_one(num_cached: float, topology: Topology, tmp_path: Path) -> None:
    store, states = make(topology, tmp_path, num_cached)
    for i, name in enumerate("abcdabcd"):
        store.load(name)
        states[name].parameters["w"].add_(float(i))
        assert len(in_memory(states)) == min(i, int(num_cached)) + 1
        assert name in in_memory(states)
    store.load("a")  # the least recently loaded nodes are offloaded first
    assert set(in_memory(states)) == {"a", *"dcb"[: int(num_cached)]}
    for i, name in enumerate("abcd"):
        assert torch.equal(states[name].parameters["w"], draw(0).add_(float(i)).add_(float(i + 4)))


def test_a_node_that_was_only_read_is_not_written(topology: Topology, tmp_path: Path) -> None:
    store, _ = make(topology, tmp_path)
    for name in "abcd":
        store.load(name, to_write=False)
    assert len(pages(tmp_path)) == 1


def test_an_upload_and_its_sender_share_a_page(topology: Topology, tmp_path: Path) -> None:
    store, states = make(topology, tmp_path)
    store.load("a")
    states["a"].parameters["w"].add_(1.0)
    sent = {"w": states["a"].parameters["w"]}
    upload = store.keep_upload(
        "a", Upload(node="a", round=0, parts={"backbone": sent}, num_tokens=3, metrics={"x": 1.0})
    )
    assert isinstance(upload.parts["backbone"]["w"], PagedTensor)
    assert (upload.num_tokens, upload.metrics) == (3, {"x": 1.0})
    store.load("b")  # a is offloaded
    assert len(pages(tmp_path)) == 2
    assert torch.equal(states["a"].parameters["w"], upload.parts["backbone"]["w"])
    store.load("a")
    states["a"].parameters["w"].zero_()
    store.load("b")
    assert torch.equal(upload.parts["backbone"]["w"], draw(0).add_(1.0))


def test_all_large_tensors_of_a_node_are_offloaded_to_disk(topology: Topology, tmp_path: Path) -> None:
    store, states = make(topology, tmp_path)
    store.load("a")
    state = states["a"]
    residual = Residual(keys={"k": draw(1)}, values={}, origin="x", federation="y", jurisdiction=None, round=0)
    state.start = {"w": draw(2)}
    state.memory = {"piece": {"score": [1.0, 2.0], "models": {"b": {"w": draw(3)}}}}
    state.download = Download(round=0, parts={"keys": {"w": draw(4)}}, residuals=(residual,))
    state.uploads = {"c": Upload(node="c", round=0, parts={"keys": {"w": draw(5)}}, num_tokens=1)}
    store.load("b")
    assert state.start is not None
    assert state.download is not None
    offloaded = [
        state.start["w"], state.memory["piece"]["models"]["b"]["w"], state.download.parts["keys"]["w"],
        state.download.residuals[0].keys["k"], state.uploads["c"].parts["keys"]["w"],
    ]  # fmt: skip
    assert all(isinstance(tensor, PagedTensor) for tensor in offloaded)
    for tensor, seed in zip(offloaded, (2, 3, 4, 1, 5), strict=True):
        assert torch.equal(tensor, draw(seed))
    assert state.memory["piece"]["score"] == [1.0, 2.0]
    store.load("a")
    assert state.start is not None
    assert not isinstance(state.start["w"], PagedTensor)  # these are a federation's weights once it aggregates


def test_a_start_that_is_set_after_a_node_was_read_is_saved(topology: Topology, tmp_path: Path) -> None:
    store, states = make(topology, tmp_path)
    store.load("world", to_write=False)
    states["world"].start = {"w": draw(9)}
    store.load("a")
    assert states["world"].start is not None
    assert torch.equal(states["world"].start["w"], draw(9))


@pytest.mark.parametrize("changed", [False, True])
def test_prefetched_tensors_are_used_only_if_they_are_current(
    changed: bool, topology: Topology, tmp_path: Path
) -> None:
    store, states = make(topology, tmp_path)
    states["world"].participants = ("a", "c")
    optimizers = {"c": store.store_optimizer({"moment": draw(8), "step": 3})}
    store.load("a")
    store.prefetch("a", optimizers)
    (waiting, _), (moments, _) = store._prefetched.values()
    assert waiting is states["c"].parameters  # b does not participate
    assert moments is optimizers["c"]
    if changed:
        store.load("c")
        states["c"].parameters["w"].zero_()
        store.load("b")
    store.load("c")
    assert torch.equal(states["c"].parameters["w"], torch.zeros(SIZE) if changed else draw(0))
    assert torch.equal(store.load_optimizer(optimizers["c"])["moment"], draw(8))
    assert store._prefetched == {}


# ---------------------------------------------------------------- the folder


def test_the_folder_is_removed_together_with_the_store(topology: Topology, tmp_path: Path) -> None:
    store, states = make(topology, tmp_path / "pages")
    assert (tmp_path / "pages").exists()
    del store, states
    gc.collect()
    assert not (tmp_path / "pages").exists()


def test_only_the_folders_of_killed_runs_are_removed(topology: Topology, tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from worldlm.storage.paged_store import _own_folder\n"
        "class Owner: pass\n"
        "owner = Owner(); folder = _own_folder(owner, Path(sys.argv[1]))\n"
        "(folder / '0.safetensors').write_bytes(b'left'); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert killed.returncode == -9
    assert [path.read_bytes() for path in pages(tmp_path)] == [b"left"]
    running, states = make(topology, tmp_path)
    assert len(pages(tmp_path)) == 1
    other, _ = make(topology, tmp_path)
    assert len(list(tmp_path.glob("*.lock"))) == 2
    running.load("a")
    assert torch.equal(states["a"].parameters["w"], draw(0))
    del other


@pytest.mark.parametrize("cache", [-1.0, float("nan"), float("inf")])
def test_an_invalid_cache_size_is_rejected(cache: float) -> None:
    with pytest.raises(ValueError, match="cache_gb must be at least 0, got"):
        Paging(cache_gb=cache)


# ---------------------------------------------------------------------- device memory


def test_a_node_is_moved_to_the_device_except_for_scalars_of_its_memory() -> None:
    meta = torch.device("meta")
    store = NodeStore(meta)
    download = Download(round=0, parts={"keys": {"w": draw(1)}})
    memory = {"averaging": {"optimizer": {0: {"step": torch.tensor(3.0), "exp_avg": draw(2)}}}}
    state = NodeState(parameters={"w": draw(0), "scale": torch.tensor(1.0)}, download=download, memory=memory)
    states = {"a": state}
    store.register(states)
    moved = states["a"]
    assert moved.download is not None
    tensors = (*moved.parameters.values(), moved.download.parts["keys"]["w"])
    assert {tensor.device for tensor in tensors} == {meta}
    optimizer_state = moved.memory["averaging"]["optimizer"][0]
    assert (optimizer_state["step"], optimizer_state["exp_avg"].device) == (torch.tensor(3.0), meta)
    assert {tensor.device for tensor in store.initial_weights({"w": draw(0)}).values()} == {meta}
