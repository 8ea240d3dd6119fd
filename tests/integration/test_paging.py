"""A world whose waiting nodes are on disk gives the same results as a world in memory, bit for bit."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from tested_family import EMBEDDING

from worldlm.callbacks import ClusteredAveraging, Ditto, FedAMP, Record, Summary, TokenRows
from worldlm.storage import pages
from worldlm.storage.paged_store import Paging
from worldlm.storage.pages import PagedTensor
from worldlm.topology import Topology, parse_topology
from worldlm.trainer.node_slot import NodeSlot

Make = Callable[..., Any]

PAGING = Paging(cache_gb=0.0)
"""No waiting node is kept in memory."""


@pytest.fixture(autouse=True)
def _all_tensors_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Page every tensor except scalars: all tensors of a tiny model are small."""
    monkeypatch.setattr(pages, "_SMALLEST", 16)


@pytest.fixture
def deep_tree() -> Topology:
    """Four levels, with a listener, reset moments, and partial participation."""
    text = """
name: deep
settings: {num_local_steps: 1, batch_size: 2}
root:
  name: world
  settings: {participation: 0.5}
  children:
    - name: north
      settings: {optimizer_state: reset}
      children:
        - name: far
          corpus: e
          settings: {num_subrounds: 2}
          children: [{name: a, corpus: a}, {name: b, corpus: b}]
        - {name: c, corpus: c}
        - {name: ear, corpus: a, settings: {num_local_steps: 0}}
    - name: south
      children: [{name: d, corpus: d}, {name: f, corpus: f}]
    - {name: g, corpus: g}
"""
    return parse_topology(text, "deep.yaml")


@pytest.mark.parametrize("shape", ["tree", "busy_tree", "deep_tree"])
def test_the_whole_method_is_the_same_bit_for_bit(
    shape: str, request: pytest.FixtureRequest, fit: Make, whole_method: Make, snapshot: Make, differences: Make
) -> None:
    topology = request.getfixturevalue(shape)
    options: dict[str, Any] = {"max_epochs": 3, "gradient_clip_val": 0.5}
    whole, paged = (
        fit(topology, [*whole_method(), TokenRows(EMBEDDING), Record()], paging=paging, **options)
        for paging in (None, PAGING)
    )
    assert differences(snapshot(paged), snapshot(whole)) == []
    on_disk = [name for name, state in paged.world.states.items() if _is_on_disk(state.parameters)]
    assert sorted([*on_disk, "world"]) == sorted(topology.nodes)


def _is_on_disk(tensors: dict[str, Any]) -> bool:
    return any(isinstance(tensor, PagedTensor) for tensor in tensors.values())


@pytest.mark.parametrize(
    "method",
    [
        lambda: [FedAMP()],
        lambda: [TokenRows(), ClusteredAveraging(min_similarity=1.0, leaf_download_rate=0.5)],
        lambda: [TokenRows(), Ditto()],
    ],
    ids=["fedamp", "clustered", "ditto"],
)
def test_personalised_models_with_copied_weights_are_the_same(
    method: Make, star: Make, fit: Make, snapshot: Make, differences: Make
) -> None:
    whole = fit(star("abc"), method(), max_epochs=3)
    paged = fit(star("abc"), method(), max_epochs=3, paging=PAGING, share_memory=False)
    assert differences(snapshot(paged), snapshot(whole)) == []
    paged.world.store.load("a")
    for models in (memory["models"] for memory in paged.world.states["world"].memory.values() if "models" in memory):
        assert all(map(_is_on_disk, models.values()))


@pytest.mark.parametrize(
    ("before", "after"), [(PAGING, None), (None, PAGING), pytest.param(PAGING, PAGING, marks=pytest.mark.slow)]
)
def test_resume_from_the_middle_of_a_round(
    before: Paging | None, after: Paging | None, busy_tree: Topology, fit: Make, make_module: Make, whole_method: Make,
    save_everywhere: Make, snapshot: Make, differences: Make,
) -> None:  # fmt: skip
    whole = snapshot(fit(busy_tree, whole_method()))
    saver = save_everywhere("on_train_batch_start", "on_train_batch_end", "on_train_epoch_end")
    fit(busy_tree, [*whole_method(), saver], paging=before)
    for path in saver.saved[::8]:
        resumed = fit(busy_tree, whole_method(), resume=path, module=make_module(99), paging=after)
        assert differences(snapshot(resumed), whole) == [], path.name


def test_reset_moments_are_restored_within_a_fit(
    star: Make, fit: Make, make_module: Make, whole_method: Make, save_everywhere: Make, snapshot: Make,
    differences: Make,
) -> None:  # fmt: skip
    topology = star("ab", "optimizer_state: reset")
    saver = save_everywhere("on_train_batch_end")
    whole = snapshot(fit(topology, [*whole_method(), saver], paging=PAGING))
    for path in saver.saved[::3]:
        resumed = fit(topology, whole_method(), resume=path, module=make_module(99), paging=PAGING)
        assert differences(snapshot(resumed), whole) == [], path.name


class DeletePages(Callback):
    """Deletes all pages at the end of the last round, before the other callbacks report the results."""

    def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.world.round == 1:
            paths = list(Path(trainer.folder).rglob("*.safetensors"))
            assert len(paths) >= len(trainer.topology.nodes) - 1
            for path in paths:
                path.unlink()


def test_figures_of_nodes_are_available_without_pages(
    tree: Topology, fit: Make, whole_method: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the digests of the final weights read pages, and are switched off here."""
    monkeypatch.setattr("worldlm.monitoring.record._all_digests", lambda trainer: None)
    fit(tree, [DeletePages(), *whole_method(), Record(), Summary()], paging=PAGING)
    assert "tree after 2 rounds" in capsys.readouterr().out


def test_a_damaged_page_ends_the_run_with_one_clear_line(
    tree: Topology, fit: Make, whole_method: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unload = NodeSlot.unload

    def unload_and_damage(slot: NodeSlot) -> None:
        unload(slot)
        for path in tmp_path.rglob("*.safetensors"):
            path.write_bytes(path.read_bytes()[:-4])

    monkeypatch.setattr(NodeSlot, "unload", unload_and_damage)
    with pytest.raises(OSError, match=r"pages/.*safetensors does not hold what was written into it: .* checkpoint"):
        fit(tree, whole_method(), paging=PAGING)


def test_all_pages_are_removed_after_the_run(tree: Topology, fit: Make, whole_method: Make, tmp_path: Path) -> None:
    trainer = fit(tree, whole_method(), paging=Paging(folder=str(tmp_path / "elsewhere")))
    assert len(list((tmp_path / "elsewhere").rglob("*.safetensors"))) > len(tree.nodes) - 1
    del trainer
    gc.collect()
    assert not (tmp_path / "elsewhere").exists()


def test_disk_and_device_exclude_each_other(star: Make, trainer_for: Make) -> None:
    with pytest.raises(ValueError, match="nodes_on is device, but paging"):
        trainer_for(star("ab"), nodes_on="device", paging=PAGING)
