"""Checkpoints are whole or not there, load without executing anything, and say what is wrong with them."""

from __future__ import annotations

import errno
import random
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


@pytest.fixture
def last(tree: Topology, fit: Make, whole_method: Make) -> Path:
    """The last checkpoint of a world in which everything is used."""
    return LastCheckpoint.path(fit(tree, [*whole_method(), LastCheckpoint()]))


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
def test_a_disk_that_is_full_is_told_of_whenever_that_is(
    taken: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every write of a checkpoint, of which a part was taken: torch has other words for some of them."""
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
    full, told = 0, set()
    while True:
        full, calls = full + 1, 0
        try:
            AtomicCheckpointIO().save_checkpoint(content, target)
        except OSError as error:
            told |= {str(error), target.read_bytes() == before}
        else:
            break
    assert told == {f"[Errno 28] No space left on device: '{target}'", True}
    assert full > 20


def test_while_saving_the_old_file_is_whole(last: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, save = last.read_bytes(), torch.save

    def look(checkpoint: Any, file: Any) -> None:
        save(checkpoint, file)
        assert last.read_bytes() == before

    monkeypatch.setattr(torch, "save", look)
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
def test_a_flipped_bit_is_noticed_wherever_it_matters(number: int, last: Path, differences: Make) -> None:
    whole, content = last.read_bytes(), read_checkpoint(last)
    chosen, refused = random.Random(0), 0
    for _ in range(number):
        place, bit = chosen.randrange(len(whole)), 1 << chosen.randrange(8)
        last.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        try:
            found = read_checkpoint(last)
        except ValueError:
            refused += 1
        else:
            assert differences(found, content) == [], f"byte {place}, bit {bit}"
    assert refused > number / 3  # the rest lies between what is saved


def test_whoever_refuses_a_damaged_checkpoint_names_the_others(last: Path) -> None:
    keep(last, "round_1.ckpt")
    whole = last.read_bytes()
    middle = len(whole) // 2
    last.unlink()  # the two are one file
    last.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(ValueError, match=r"damaged: the checksum of \S+ differs \(beside it: round_1\.ckpt\)"):
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


def test_a_missing_file_is_missing(tmp_path: Path, tree: Topology, fit: Make, whole_method: Make) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        fit(tree, whole_method(), resume=tmp_path / "none.ckpt")


def test_another_tree_or_seed_is_refused(last: Path, tree: Topology, star: Make, fit: Make, whole_method: Make) -> None:
    with pytest.raises(ValueError, match="of another topology, with nodes world, north.*no node that holds data is in"):
        fit(star("xy"), whole_method(), resume=last)
    with pytest.raises(ValueError, match="made with seed 7, this run has seed 8"):
        fit(tree, whole_method(), resume=last, seed=8)


def test_one_of_another_format_is_refused(last: Path, tree: Topology, fit: Make, whole_method: Make) -> None:
    checkpoint = torch.load(last, weights_only=True)
    del checkpoint["loops"]["fit_loop"]["state_dict"]["world"]["format"]
    torch.save(checkpoint, last)
    with pytest.raises(ValueError, match="the checkpoint is of format 1, this WorldLM reads format 3"):
        fit(tree, whole_method(), resume=last)


def test_the_last_checkpoint_is_of_the_last_round_asked_for(tree: Topology, fit: Make, whole_method: Make) -> None:
    found = []

    class Look(LastCheckpoint):
        def _save(self, trainer: Any) -> None:
            found.append(trainer.world.round)

    fit(tree, [*whole_method(), Look(every_n_rounds=2)], max_epochs=5, limit_val_batches=0)
    assert found == [1, 3, 4]


def test_a_long_round_is_saved_within(tree: Topology, fit: Make, whole_method: Make) -> None:
    saved = []

    class Look(LastCheckpoint):
        def _save(self, trainer: Any) -> None:
            super()._save(trainer)
            saved.append(trainer.fit_loop.phase is Phase.FITTING)

    fit(tree, [*whole_method(), Look(every_n_minutes=1e-9)])
    assert saved.count(True) == 12
    for wrong in ({"every_n_rounds": 0}, {"every_n_minutes": 0.0}, {"keep_every_n_rounds": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            LastCheckpoint(**wrong)


def test_rounds_are_kept_and_written_once(tree: Topology, fit: Make, whole_method: Make) -> None:
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


def test_where_a_file_has_one_name_only_it_is_copied(last: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: Path) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr("os.link", refuse)
    keep(last, "round_2.ckpt")
    assert last.with_name("round_2.ckpt").read_bytes() == last.read_bytes()
    assert sorted(path.name for path in last.parent.iterdir()) == ["last.ckpt", "round_2.ckpt"]


def test_any_nodes_weights_are_read_without_the_world(tree: Topology, fit: Make, whole_method: Make) -> None:
    trainer = fit(tree, [*whole_method(), LastCheckpoint()])
    saved = open_world(LastCheckpoint.path(trainer))
    assert (saved.num_rounds, saved.within_round) == (2, False)
    assert list(saved.children) == list(tree.nodes)
    assert saved.children["north"] == ["a", "b"]
    for name, state in trainer.world.states.items():
        found = saved.parameters(name)
        assert sorted(found) == sorted(state.parameters)
        assert all(torch.equal(found[key], value) for key, value in state.parameters.items())
    with pytest.raises(ValueError, match="has no node 'nort'; it has world, north, .*did you mean 'north'"):
        saved.parameters("nort")


def test_within_a_round_is_known(tree: Topology, fit: Make, whole_method: Make, save_everywhere: Make) -> None:
    saver = save_everywhere("on_train_batch_end", "on_train_epoch_end")
    fit(tree, [*whole_method(), saver])
    found = [(path.stem[4:], (world := open_world(path)).num_rounds, world.within_round) for path in saver.saved]
    expected = [[("on_train_batch_end", done, True)] * 6 + [("on_train_epoch_end", done + 1, False)] for done in (0, 1)]
    assert found == [one for part in expected for one in part]


def test_nodes_of_the_formats_known_are_read(last: Path) -> None:
    checkpoint = torch.load(last, weights_only=True)
    world = checkpoint["loops"]["fit_loop"]["state_dict"]["world"]
    weights = world["states"]["a"]["parameters"]
    del world["format"]  # as the first one was
    torch.save(checkpoint, last)
    found = open_world(last).parameters("a")
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    world["format"] = 99
    torch.save(checkpoint, last)
    with pytest.raises(ValueError, match="it is of format 99, known are 1, 2, 3"):
        open_world(last)


def test_a_plain_checkpoint_is_no_world(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "loops": {"fit_loop": {"state_dict": {}}}}, tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match=r"plain.ckpt cannot be read as a saved world: it holds no world of nodes"):
        open_world(tmp_path / "plain.ckpt")


def test_a_new_checkpoint_is_a_new_file(last: Path) -> None:
    with last.open("rb") as reader:  # somebody copies the old one away
        size = last.stat().st_size
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, last)
        assert len(reader.read()) == size
    assert last.stat().st_size < size
