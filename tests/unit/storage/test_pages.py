"""Tensors on disk, which can be read like tensors in memory."""

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from worldlm.federation.averaging import outer_step_, weighted_mean
from worldlm.federation.parameters import num_bytes
from worldlm.storage.page_files import digest
from worldlm.storage.pages import PagedTensor, Pages, fetch

LARGE = (64, 17)  # more than 4096 bytes of float32


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@pytest.fixture
def pages(tmp_path: Path) -> Pages:
    return Pages(tmp_path)


def draw(seed: int, shape: tuple[int, ...] = LARGE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- to disk and back


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_a_nest_is_restored_from_disk(dtype: torch.dtype, pages: Pages) -> None:
    nest = {
        "a": draw(0, (99, 99)).to(dtype),
        "b": [1, "x", (draw(1).to(torch.float64), None)],
        "c": {},
        "d": torch.ones(2),
    }
    put = pages.put(nest)
    assert isinstance(put["a"], PagedTensor)
    assert (put["a"].shape, put["a"].dtype, put["a"].device) == (nest["a"].shape, dtype, torch.device("cpu"))
    assert type(put["d"]) is Tensor  # too small to be paged
    assert put["d"].data_ptr() != nest["d"].data_ptr()
    back = fetch(put)
    assert (type(back["a"]), back["a"].dtype) == (Tensor, dtype)
    assert torch.equal(back["a"], nest["a"])
    assert back["b"][:2] == [1, "x"]
    assert torch.equal(back["b"][2][0], nest["b"][2][0])


trees = st.recursive(
    st.none() | st.integers() | st.integers(0, 4).map(draw),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=30)
@given(nest=trees)
def test_any_nest_of_plain_containers(nest: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("pages")
    put = Pages(folder).put(nest)
    assert _values(fetch(put)) == _values(put) == _values(nest)
    contents = {digest(tensor): tensor for tensor in _tensors(nest)}
    written: dict[str, Tensor] = {}
    for path in files(folder):
        written |= load_file(path)
    assert sum(len(load_file(path)) for path in files(folder)) == len(contents)  # equal tensors are written once
    assert all(torch.equal(written[key], tensor) for key, tensor in contents.items())


def _values(nest: Any) -> Any:
    if isinstance(nest, Tensor):
        return nest.tolist()
    if isinstance(nest, dict):
        return {key: _values(inner) for key, inner in nest.items()}
    return [_values(inner) for inner in nest] if isinstance(nest, list) else nest


def _tensors(nest: Any) -> list[Tensor]:
    if isinstance(nest, Tensor):
        return [nest]
    values = nest.values() if isinstance(nest, dict) else nest if isinstance(nest, list) else ()
    return [tensor for inner in values for tensor in _tensors(inner)]


def test_a_transposed_tensor_with_a_graph(pages: Pages) -> None:
    transposed = torch.nn.Parameter(draw(0)).t()
    back = fetch(pages.put([transposed]))[0]
    assert torch.equal(back, transposed)
    assert not back.requires_grad


@settings(max_examples=30)
@given(sizes=st.lists(st.integers(1025, 3000), min_size=1, max_size=5))
def test_fetched_tensors_share_one_aligned_block_of_memory(
    sizes: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    back = fetch(Pages(tmp_path_factory.mktemp("pages")).put([draw(0, (size,)) for size in sizes]))
    assert all(torch.equal(tensor, draw(0, (size,))) for tensor, size in zip(back, sizes, strict=True))
    begins = [tensor.data_ptr() for tensor in back]
    assert all(begin % 64 == 0 for begin in begins)
    assert begins[-1] - begins[0] == sum(-(-4 * size // 64) * 64 for size in sizes[:-1])


# ---------------------------------------------------------------- files


def test_equal_tensors_are_written_once_and_deleted_with_their_last_reference(
    pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worldlm.storage.page_files._MAX_SPARE_BYTES", 0)
    first, second = pages.put({"a": draw(0), "b": draw(0)}), pages.put([draw(0), draw(1)])
    assert [len(load_file(path)) for path in files(tmp_path)] == [1, 1]
    assert torch.equal(second[0], draw(0))
    del first
    gc.collect()
    assert len(files(tmp_path)) == 2  # the second still refers to what the first wrote
    del second
    gc.collect()
    assert files(tmp_path) == []


def test_a_file_without_references_is_written_over(pages: Pages, tmp_path: Path) -> None:
    put = pages.put([draw(0), draw(1)])
    (file,) = files(tmp_path)
    number, size = file.stat().st_ino, file.stat().st_size
    del put
    assert files(tmp_path) == [file]
    put = pages.put([draw(2)])
    (file,) = files(tmp_path)
    assert (file.stat().st_ino, file.stat().st_size < size) == (number, True)
    assert torch.equal(fetch(put)[0], draw(2))
    assert len(load_file(file)) == 1


def test_the_size_of_spare_files_is_bounded(pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = [pages.put([draw(seed)]) for seed in range(5)]
    paths = files(tmp_path)
    monkeypatch.setattr("worldlm.storage.page_files._MAX_SPARE_BYTES", 2 * paths[0].stat().st_size)
    while put:
        del put[0]
    assert files(tmp_path) == paths[3:]


@settings(max_examples=50)
@given(data=st.data())
def test_a_file_in_use_is_never_written_over(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A paged tensor, and memory that maps it, keep their content whichever other tensors are released."""
    pages = Pages(tmp_path_factory.mktemp("pages"))
    held: list[tuple[Any, list[int]]] = []
    for _ in range(data.draw(st.integers(1, 12))):
        if held and data.draw(st.booleans()):
            del held[data.draw(st.integers(0, len(held) - 1))]
            continue
        seeds = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
        put = pages.put([draw(seed) for seed in seeds])
        held.append(([tensor.view(LARGE) for tensor in put] if data.draw(st.booleans()) else put, seeds))
        del put
    for nest, seeds in held:
        assert all(torch.equal(tensor, draw(seed)) for tensor, seed in zip(nest, seeds, strict=True))


def test_type_and_shape_are_part_of_the_content(pages: Pages) -> None:
    zeros = [torch.zeros(2048), torch.zeros(2, 1024), torch.zeros(1024, dtype=torch.float64)]
    for tensor, back in zip(zeros, fetch(pages.put(zeros)), strict=True):
        assert (tensor.shape, tensor.dtype) == (back.shape, back.dtype)


def test_no_partial_file_is_left_after_an_error(pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("worldlm.storage.pages.save", fail)
    with pytest.raises(OSError, match="no space left"):
        pages.put([draw(0)])
    assert files(tmp_path) == []
    monkeypatch.undo()
    assert torch.equal(pages.put([draw(0)])[0], draw(0))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, empty, Path.unlink])
@pytest.mark.parametrize("read", [fetch, lambda put: put[0].sum(), copy.deepcopy])
def test_a_damaged_page_raises_an_error(
    damage: Callable[[Path], Any], read: Callable[[Any], Any], pages: Pages, tmp_path: Path
) -> None:
    put = pages.put([draw(0)])
    damage(*files(tmp_path))
    with pytest.raises(OSError, match="does not hold what was written into it"):
        read(put)


@pytest.mark.parametrize("read", [lambda put: fetch(put)[0], lambda put: put[0] + 0, lambda put: copy.deepcopy(put)[0]])
def test_a_damaged_header_has_no_effect(read: Callable[[Any], Tensor], pages: Pages, tmp_path: Path) -> None:
    """The offsets of tensors are in memory, and the content is verified by its digest."""
    put = pages.put([draw(0), draw(1)])
    (path,) = files(tmp_path)
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])
    assert torch.equal(read(put), draw(0))


# ---------------------------------------------------------------- reading and writing


def test_shape_and_size_are_available_without_the_disk(pages: Pages, tmp_path: Path) -> None:
    (put,) = pages.put([draw(0)])
    files(tmp_path)[0].unlink()
    assert (put.shape, put.size(0), put.dim(), len(put), put.dtype) == (LARGE, 64, 2, 64, torch.float32)
    assert num_bytes({"a": put}) == 64 * 17 * 4


@pytest.mark.parametrize(
    "write",
    [
        lambda tensor: tensor.add_(1.0),
        lambda tensor: tensor.copy_(torch.zeros(LARGE)),
        lambda tensor: tensor.__setitem__(0, 1.0),
        lambda tensor: torch.add(tensor, 1.0, out=tensor),
        lambda tensor: torch._foreach_add_([tensor], 1.0),
    ],
)
def test_writing_raises_an_error_and_changes_nothing(write: Callable[[Tensor], Any], pages: Pages) -> None:
    (put,) = pages.put([draw(0)])
    with pytest.raises(RuntimeError, match="writes into a tensor that is on disk"):
        write(put)
    assert torch.equal(put, draw(0))


def test_averaging_and_the_outer_step_read_from_disk(pages: Pages) -> None:
    models = [{"a": draw(seed)} for seed in (0, 1, 2)]
    assert torch.equal(
        weighted_mean(pages.put(models), [1.0, 2.0, 3.0])["a"], weighted_mean(models, [1.0, 2.0, 3.0])["a"]
    )
    plain, paged = {"a": draw(4)}, {"a": draw(4)}
    state = put = None
    for mean in models:
        state = outer_step_(plain, mean, torch.optim.SGD, {"lr": 0.7, "momentum": 0.9}, state).state
        before = pages.put(state if put is None else put)
        put = outer_step_(paged, mean, torch.optim.SGD, {"lr": 0.7, "momentum": 0.9}, put and before).state
        assert torch.equal(plain["a"], paged["a"])
    assert torch.equal(fetch(pages.put(put))[0]["momentum_buffer"], state[0]["momentum_buffer"])


def test_mapped_memory_is_not_shared_with_other_reads(pages: Pages) -> None:
    first, second = pages.put([draw(0)]) + pages.put([draw(0)])
    plain = first.to(torch.float32)  # a plain tensor over the mapped file
    plain.add_(1.0)
    assert torch.equal(second, draw(0))
    assert torch.equal(fetch([first])[0], draw(0))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists the mappings of a process")
def test_mappings_are_released_at_once(pages: Pages) -> None:
    def num_mapped() -> int:
        return Path("/proc/self/maps").read_text().count(str(pages.folder))

    (put,) = pages.put([draw(0)])
    gc.disable()  # mappings must be released without it
    try:
        torch.zeros(LARGE).add_(put, alpha=0.5)
        torch.stack([put, put])
        fetched = fetch([put])
        assert num_mapped() == 0
        view = put.reshape(-1)
        assert num_mapped() == 1
    finally:
        gc.enable()
    assert torch.equal(view.view(LARGE), fetched[0])


def test_a_checkpoint_contains_plain_tensors(pages: Pages, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    torch.save(pages.put({"a": draw(0), "b": draw(1), "again": draw(0)}), path)
    loaded = torch.load(path, weights_only=True)
    assert all(type(tensor) is Tensor for tensor in loaded.values())
    assert torch.equal(loaded["a"], draw(0))
    assert torch.equal(loaded["b"], draw(1))
    torch.save([pages.put(put := pages.put([draw(0)])), put, pages.put(put)], path)
    assert len({tensor.data_ptr() for (tensor,) in torch.load(path, weights_only=True)}) == 3
    loaded["a"].add_(1.0)
    assert torch.equal(loaded["again"], draw(0))  # an equal tensor, but not the same one
