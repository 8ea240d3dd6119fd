"""Checkpoints are written atomically, load without executing anything, and are rejected with a reason if damaged."""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Callable
from io import BufferedWriter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from worldlm.callbacks import LastCheckpoint
from worldlm.callbacks.last_checkpoint import keep
from worldlm.checkpoint.lightning_io import AtomicCheckpointIO
from worldlm.checkpoint.read import open_world, read_checkpoint
from worldlm.topology import Topology
from worldlm.trainer.phase import Phase

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that needs a checkpoint keeps it for the others."""
    return tmp_path_factory.mktemp("first") / "last.ckpt"


@pytest.fixture
def last(first: Path, tree: Topology, fit: Make, whole_method: Make, tmp_path: Path) -> Path:
    """The last checkpoint of a world with the whole method: a copy, of one's own."""
    if not first.exists():
        trainer = fit(tree, [*whole_method(), LastCheckpoint()], default_root_dir=first.parent / "run")
        shutil.copy(LastCheckpoint.path(trainer), first)
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    shutil.copy(first, path)
    return path


def test_they_load_with_weights_only(last: Path) -> None:
    checkpoint = torch.load(last, weights_only=True)
    world = checkpoint["loops"]["fit_loop"]["state_dict"]["world"]
    assert set(world["states"]) == {"world", "north", "south", *"abcd"}
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]


def test_a_crash_while_saving_leaves_the_old_file(last: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = last.read_bytes()

    def crash(checkpoint: Any, file: Any) -> None:
        file.write(b"half a checkpoint")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(OSError, match="no space left"):
        AtomicCheckpointIO().save_checkpoint({}, last)
    assert last.read_bytes() == before
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("taken", [0.0, 0.5, 1.0])
def test_a_full_disk_raises_the_same_error_at_every_write(
    taken: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk accepts only a part of a write. For some writes, torch raises an error of its own."""
    target, write, calls = tmp_path / "last.ckpt", BufferedWriter.write, 0

    def fill(file: BufferedWriter, content: Any) -> int:
        nonlocal calls
        calls += 1
        if calls < full:
            return write(file, content)
        write(file, memoryview(content).cast("B")[: int(taken * memoryview(content).nbytes)])
        raise OSError(errno.ENOSPC, "No space left on device")

    content = {f"w{i}": torch.ones(size) for i, size in enumerate((10, 1000, 20000))}
    AtomicCheckpointIO().save_checkpoint(content, target)
    before = target.read_bytes()
    monkeypatch.setattr("worldlm.checkpoint.write._PageReleasingFile.write", fill)
    full, results = 0, set()
    while True:
        full, calls = full + 1, 0
        try:
            AtomicCheckpointIO().save_checkpoint(content, target)
        except OSError as error:
            results |= {str(error), target.read_bytes() == before}
        else:
            break
    assert results == {f"[Errno 28] No space left on device: '{target}'", True}
    assert full > 20


def test_the_old_file_stays_complete_while_saving(last: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, save = last.read_bytes(), torch.save

    def save_and_compare(checkpoint: Any, file: Any) -> None:
        save(checkpoint, file)
        assert last.read_bytes() == before

    monkeypatch.setattr(torch, "save", save_and_compare)
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, last)
    assert torch.load(last) == {"state_dict": {}}


def _foreign(kind: str, last: Path) -> None:
    data = last.read_bytes()
    if kind == "truncated":
        last.write_bytes(data[: len(data) // 2])
    elif kind == "damaged":
        middle = len(data) // 2
        last.write_bytes(data[:200] + bytes(300) + data[500:middle] + data[middle + 40 :])
    elif kind == "empty":
        last.write_bytes(b"")
    elif kind == "text":
        last.write_text("topology: star\n")
    elif kind == "pickle":
        import pickle

        last.write_bytes(pickle.dumps({"state_dict": Path}))
    elif kind == "tensor":
        torch.save(torch.zeros(3), last)
    elif kind == "weights":
        torch.save({"state_dict": torch.load(last)["state_dict"]}, last)


@pytest.mark.parametrize("kind", ["truncated", "damaged", "empty", "text", "pickle", "tensor", "weights"])
def test_foreign_files_give_a_value_error(
    kind: str, last: Path, tree: Topology, fit: Make, whole_method: Make, make_module: Make
) -> None:
    _foreign(kind, last)
    with pytest.raises(ValueError, match=r"last\.ckpt cannot be read as a checkpoint"):
        fit(tree, whole_method(), resume=last, module=make_module(3))


@pytest.mark.parametrize("number", [40, pytest.param(4000, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_detected_or_changes_nothing(number: int, last: Path, differences: Make) -> None:
    whole, content = last.read_bytes(), read_checkpoint(last)
    rng, rejected = random.Random(0), 0
    for _ in range(number):
        position, bit = rng.randrange(len(whole)), 1 << rng.randrange(8)
        last.write_bytes(whole[:position] + bytes([whole[position] ^ bit]) + whole[position + 1 :])
        try:
            damaged = read_checkpoint(last)
        except ValueError:
            rejected += 1
        else:
            assert differences(damaged, content) == [], f"byte {position}, bit {bit}"
    assert rejected > number / 3  # the other bits are padding between the saved tensors


def test_a_tensor_that_is_marked_as_a_folder_is_rejected(last: Path) -> None:
    whole = last.read_bytes()
    attributes = whole.rindex(b"PK\x01\x02", 0, whole.index(b"archive/data/1PK")) + 38  # in the central directory
    last.write_bytes(whole[:attributes] + b"\x10" + whole[attributes + 1 :])
    with pytest.raises(ValueError, match=r"archive/data/1 has attributes of a file or folder"):
        read_checkpoint(last)


def test_the_error_about_a_damaged_checkpoint_names_the_others(last: Path) -> None:
    keep(last, "round_1.ckpt")
    whole = last.read_bytes()
    middle = len(whole) // 2
    last.unlink()  # both names are hard links to the same file
    last.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    reason = r"damaged: the checksum of \S+ differs \(other checkpoints in its folder: round_1\.ckpt\)"
    with pytest.raises(ValueError, match=reason):
        read_checkpoint(last, mapped=True)
    assert read_checkpoint(last.with_name("round_1.ckpt"))["epoch"] >= 1


def test_lightnings_own_checkpoints_give_a_value_error(
    tmp_path: Path, tree: Topology, fit: Make, whole_method: Make, make_module: Make, make_data: Make
) -> None:
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    blocks = DataLoader(make_data().blocks("a", "train"), batch_size=4, collate_fn=lambda batch: batch)
    trainer.fit(make_module(), blocks, blocks)
    trainer.save_checkpoint(tmp_path / "plain.ckpt", weights_only=False)
    with pytest.raises(ValueError, match="holds no world"):
        fit(tree, whole_method(), resume=tmp_path / "plain.ckpt")


def test_a_missing_file_raises_an_error(tmp_path: Path, tree: Topology, fit: Make, whole_method: Make) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        fit(tree, whole_method(), resume=tmp_path / "none.ckpt")


def test_another_tree_or_seed_is_rejected(
    last: Path, tree: Topology, star: Make, fit: Make, whole_method: Make
) -> None:
    with pytest.raises(ValueError, match="of another topology, with nodes world, north.*no node that holds data is in"):
        fit(star("xy"), whole_method(), resume=last)
    with pytest.raises(ValueError, match="made with seed 7, but this run has seed 8"):
        fit(tree, whole_method(), resume=last, seed=8)


def test_another_format_is_rejected(last: Path, tree: Topology, fit: Make, whole_method: Make) -> None:
    checkpoint = torch.load(last, weights_only=True)
    del checkpoint["loops"]["fit_loop"]["state_dict"]["world"]["format"]
    torch.save(checkpoint, last)
    with pytest.raises(ValueError, match="the checkpoint has format 1, but this WorldLM reads format 3"):
        fit(tree, whole_method(), resume=last)


def test_a_checkpoint_is_saved_every_n_rounds_and_after_the_last(tree: Topology, fit: Make, whole_method: Make) -> None:
    rounds = []

    class RecordRounds(LastCheckpoint):
        def _save(self, trainer: Any) -> None:
            rounds.append(trainer.world.round)

    fit(tree, [*whole_method(), RecordRounds(every_n_rounds=2)], max_epochs=5, limit_val_batches=0)
    assert rounds == [1, 3, 4]


def test_checkpoints_are_saved_within_a_long_round(tree: Topology, fit: Make, whole_method: Make) -> None:
    within_fit = []

    class RecordPhases(LastCheckpoint):
        def _save(self, trainer: Any) -> None:
            super()._save(trainer)
            within_fit.append(trainer.fit_loop.phase is Phase.FITTING)

    fit(tree, [*whole_method(), RecordPhases(every_n_minutes=1e-9)])
    assert within_fit.count(True) == 12
    for arguments in ({"every_n_rounds": 0}, {"every_n_minutes": 0.0}, {"keep_every_n_rounds": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            LastCheckpoint(**arguments)


def test_checkpoints_of_earlier_rounds_are_kept_without_writing_twice(
    tree: Topology, fit: Make, whole_method: Make
) -> None:
    trainer = fit(tree, [*whole_method(), LastCheckpoint(keep_every_n_rounds=2)], max_epochs=5, limit_val_batches=0)
    folder, last = LastCheckpoint.path(trainer).parent, LastCheckpoint.path(trainer)
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "round_2.ckpt", "round_4.ckpt"]
    assert {name: open_world(folder / name).num_rounds for name in ("round_2.ckpt", "round_4.ckpt", "last.ckpt")} == {
        "round_2.ckpt": 2,
        "round_4.ckpt": 4,
        "last.ckpt": 5,
    }
    keep(last, "round_5.ckpt")
    assert (folder / "round_5.ckpt").samefile(last)


def test_a_checkpoint_is_copied_if_hard_links_are_not_supported(last: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*paths: Path) -> None:
        raise PermissionError("hard links are not supported")

    monkeypatch.setattr("os.link", fail)
    keep(last, "round_2.ckpt")
    assert last.with_name("round_2.ckpt").read_bytes() == last.read_bytes()
    assert sorted(path.name for path in last.parent.iterdir()) == ["last.ckpt", "round_2.ckpt"]


def test_the_weights_of_any_node_are_read_without_the_world(tree: Topology, fit: Make, whole_method: Make) -> None:
    trainer = fit(tree, [*whole_method(), LastCheckpoint()])
    saved = open_world(LastCheckpoint.path(trainer))
    assert (saved.num_rounds, saved.within_round) == (2, False)
    assert list(saved.children) == list(tree.nodes)
    assert saved.children["north"] == ["a", "b"]
    for name, state in trainer.world.states.items():
        weights = saved.parameters(name)
        assert sorted(weights) == sorted(state.parameters)
        assert all(torch.equal(weights[key], value) for key, value in state.parameters.items())
    with pytest.raises(ValueError, match="has no node 'nort'; it has world, north, .*did you mean 'north'"):
        saved.parameters("nort")


def test_a_checkpoint_records_whether_it_was_saved_within_a_round(
    tree: Topology, fit: Make, whole_method: Make, save_everywhere: Make
) -> None:
    saver = save_everywhere("on_train_batch_end", "on_train_epoch_end")
    fit(tree, [*whole_method(), saver])
    moments = [(path.stem[4:], (world := open_world(path)).num_rounds, world.within_round) for path in saver.saved]
    expected = [[("on_train_batch_end", done, True)] * 6 + [("on_train_epoch_end", done + 1, False)] for done in (0, 1)]
    assert moments == [moment for of_round in expected for moment in of_round]


def test_nodes_of_earlier_formats_are_read(last: Path) -> None:
    checkpoint = torch.load(last, weights_only=True)
    world = checkpoint["loops"]["fit_loop"]["state_dict"]["world"]
    weights = world["states"]["a"]["parameters"]
    del world["format"]  # format 1 has no entry
    torch.save(checkpoint, last)
    read = open_world(last).parameters("a")
    assert all(torch.equal(read[name], value) for name, value in weights.items())
    world["format"] = 99
    torch.save(checkpoint, last)
    with pytest.raises(ValueError, match="it has format 99, but only 1, 2, 3 are known"):
        open_world(last)


def test_a_checkpoint_without_a_world_is_rejected(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "loops": {"fit_loop": {"state_dict": {}}}}, tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match=r"plain.ckpt cannot be read as a saved world: it holds no world of nodes"):
        open_world(tmp_path / "plain.ckpt")


def test_a_new_checkpoint_is_a_new_file(last: Path) -> None:
    with last.open("rb") as reader:  # another program copies the old checkpoint
        size = last.stat().st_size
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, last)
        assert len(reader.read()) == size
    assert last.stat().st_size < size
