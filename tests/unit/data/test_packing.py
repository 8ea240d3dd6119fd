"""Packed text equals what was written, damage is detected, and packing continues after a kill."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from worldlm.data import PackedCorpus
from worldlm.data.packed import open_folder
from worldlm.data.packing import Packing


def _append(packing: Packing, train: list[int], validation: list[int]) -> None:
    for split, tokens in (("train", train), ("validation", validation)):
        lengths, persons = np.array([len(tokens)]), np.array([7], np.uint64)
        packing.append(split, np.array(tokens, packing.dtype), len(tokens) - 1, lengths, persons)  # type: ignore[arg-type]


def _pack(target: Path, dtype: str = "uint16") -> Path:
    packing = Packing(target, dtype)
    _append(packing, [97, 98, 256], [99, 256])
    _append(packing, [100, 256], [101, 102, 256])
    packing.finish()
    return target


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_tokens_are_appended_in_order(tmp_path: Path, dtype: str) -> None:
    packed = open_folder(_pack(tmp_path / "a", dtype))
    assert packed["train"].tokens.tolist() == [97, 98, 256, 100, 256]
    assert packed["validation"].tokens.tolist() == [99, 256, 101, 102, 256]
    train = packed["train"]
    assert train.tokens.dtype == dtype
    assert train.documents is not None
    assert train.documents.tolist() == [(3, 7), (5, 7)]
    assert (train.num_tokens, train.num_bytes, train.num_documents) == (5, 3, 2)
    assert train.bytes_per_token == 3 / 5
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["train.bin", "validation.bin", "counts.json", "train.documents"])
@pytest.mark.parametrize("damage", ["missing", "empty", "short", "odd", "longer", "flipped"])
def test_damage_is_detected(tmp_path: Path, name: str, damage: str) -> None:
    folder = _pack(tmp_path / "a")
    file = folder / name
    content = file.read_bytes()
    middle = len(content) // 2
    broken = {
        "missing": b"",
        "empty": b"",
        "short": content[:-2],
        "odd": content[:-1],
        "longer": content + b"\0\0",
        "flipped": content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :],
    }
    file.unlink()
    if damage != "missing":
        file.write_bytes(broken[damage])
    with pytest.raises(ValueError, match="is not a packed corpus|holds .* not|checksum differs"):
        open_folder(folder)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_a_token_that_is_not_in_the_vocabulary(tmp_path: Path, dtype: str) -> None:
    folder = _pack(tmp_path / "a", dtype)  # with the right checksum
    assert open_folder(folder, vocab_size=257)["train"].num_tokens == 5
    with pytest.raises(ValueError, match=r"train\.bin holds the token 256, but the tokenizer has 256$"):
        open_folder(folder, vocab_size=256)


def test_a_folder_of_another_format_is_rejected(tmp_path: Path) -> None:
    counts = _pack(tmp_path / "a") / "counts.json"
    content = json.loads(counts.read_text())
    counts.write_text(json.dumps(content | {"format": 1}))
    with pytest.raises(ValueError, match="format 1 of uint16 is unknown"):
        open_folder(tmp_path / "a")


def test_changed_counts_are_rejected(tmp_path: Path) -> None:
    counts = _pack(tmp_path / "a") / "counts.json"
    counts.write_text(counts.read_text().replace('"num_bytes": 3', '"num_bytes": 4'))
    with pytest.raises(ValueError, match="the counts were changed after they were written"):
        open_folder(tmp_path / "a")


def test_packing_continues_from_the_last_save(tmp_path: Path) -> None:
    packing = Packing(tmp_path / "a", "uint16")
    _append(packing, [97, 98, 256], [99, 256])
    packing.position = (1, 7)
    packing.save()
    _append(packing, [1, 2, 3], [4, 5, 6])  # never saved
    packing.close()

    packing = Packing(tmp_path / "a", "uint16")
    assert packing.position == (1, 7)
    _append(packing, [100, 256], [101, 102, 256])
    packing.finish()
    uninterrupted = _pack(tmp_path / "b")
    for name in ("train.bin", "validation.bin"):
        assert (tmp_path / "a" / name).read_bytes() == (uninterrupted / name).read_bytes()
    assert (
        json.loads((tmp_path / "a" / "counts.json").read_text())["splits"]
        == (json.loads((uninterrupted / "counts.json").read_text())["splits"])
    )


@pytest.mark.parametrize("damage", ["cut", "flipped", "dtype", "counts"])
def test_a_damaged_partial_folder_is_discarded(tmp_path: Path, damage: str) -> None:
    packing = Packing(tmp_path / "a", "uint16")
    _append(packing, [97, 98, 256], [99, 256])
    packing.position = (0, 7)
    packing.save()
    packing.close()
    train, counts = packing.folder / "train.bin", packing.folder / "counts.json"
    if damage == "cut":
        train.write_bytes(train.read_bytes()[:-2])
    elif damage == "flipped":
        train.write_bytes(b"x" + train.read_bytes()[1:])
    elif damage == "counts":
        counts.write_text("{")
    packing = Packing(tmp_path / "a", "uint32" if damage == "dtype" else "uint16")
    assert packing.position == (0, 0)
    assert packing.counts["train"].num_tokens == 0
    _append(packing, [5], [6])
    packing.finish()
    assert open_folder(tmp_path / "a")["train"].tokens.tolist() == [5]


def test_a_complete_folder_replaces_a_damaged_one(tmp_path: Path) -> None:
    (_pack(tmp_path / "a") / "train.bin").write_bytes(b"xx")
    assert open_folder(_pack(tmp_path / "a"))["train"].num_tokens == 5


def test_a_removed_packing_leaves_no_files(tmp_path: Path) -> None:
    packing = Packing(tmp_path / "a", "uint16")
    _append(packing, [1], [2])
    packing.remove()
    assert not list(tmp_path.iterdir())


def test_a_packed_corpus_is_pickled_as_its_path(tmp_path: Path) -> None:
    packing = Packing(tmp_path / "a", "uint16")
    _append(packing, list(range(50_000)), [1])
    packing.finish()
    packed = open_folder(tmp_path / "a")["train"]
    pickled = pickle.dumps(packed)
    assert len(pickled) < 1000
    again = pickle.loads(pickled)
    assert isinstance(again, PackedCorpus)
    assert np.array_equal(again.tokens, packed.tokens)
