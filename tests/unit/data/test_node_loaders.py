"""Plain dataloaders as the data of a node: the same batches by their number, wherever a reading starts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, WeightedRandomSampler
from torch.utils.data.distributed import DistributedSampler

from worldlm.data import BlockBatchSampler
from worldlm.data.node_loaders import Stream, node_loader


class Squares(Dataset[int]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        return index**2


class Counting(IterableDataset[Any]):
    """Numbers with noise of every global generator; counts how often it is read."""

    started = 0

    def __iter__(self) -> Iterator[Any]:
        self.started += 1
        for i in range(5):
            yield torch.tensor([i, float(torch.rand(())), random.random(), np.random.rand()])


class Stateful:
    """A loader with the protocol of torchdata's StatefulDataLoader."""

    def __init__(self) -> None:
        self.begun_at: list[int] = []
        self.loaded = 0
        self.next = 0

    def __iter__(self) -> Iterator[int]:
        self.begun_at.append(self.loaded)
        self.next, self.loaded = self.loaded, 0
        while self.next < 4:
            self.next += 1
            yield self.next - 1

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.loaded = state["next"]


def read(loader: DataLoader[Any], start: int, length: int) -> list[Any]:
    """Read a fit as the fit loop does, while other draws change the global generators."""
    sampler: Any = loader.batch_sampler
    sampler.start, sampler.length = start, length
    torch.rand(start + 1), random.random(), np.random.rand()
    assert len(loader) == length
    return [batch.tolist() if isinstance(batch, torch.Tensor) else batch for batch in loader]


def test_passes_keep_the_batches_of_the_plain_loader() -> None:
    loader = node_loader(DataLoader(Squares(), batch_size=4), "a", 7)
    assert read(loader, 2, 3) == [[64, 81], [0, 1, 4, 9], [16, 25, 36, 49]]
    assert loader.batch_sampler.batch_size == 4  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "plain",
    [
        lambda: DataLoader(Squares(), batch_size=3, shuffle=True),
        lambda: DataLoader(Squares(), batch_size=3, shuffle=True, drop_last=True),
        lambda: DataLoader(Squares(), batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(3)),
        lambda: DataLoader(Squares(), batch_size=3, sampler=WeightedRandomSampler([1.0] * 10, 10)),
        lambda: DataLoader(Squares(), batch_sampler=BatchSampler(RandomSampler(Squares()), 3, False)),
        lambda: DataLoader(Squares(), batch_size=None, shuffle=True),
        lambda: DataLoader(Counting(), batch_size=2),
        lambda: [[1, 2], [3]],
        Stateful,
    ],
)
def test_a_fit_continues_at_any_batch(plain: Any) -> None:
    whole = read(node_loader(plain(), "a", 7), 0, 12)
    loader = node_loader(plain(), "a", 7)
    assert [read(loader, 0, 5), read(loader, 5, 7)] == [whole[:5], whole[5:]]
    assert read(node_loader(plain(), "a", 7), 5, 7) == whole[5:]  # after a restart
    assert read(loader, 3, 2) == whole[3:5]  # a fit that is repeated


def test_the_order_depends_on_the_seed_the_node_and_the_pass() -> None:
    def order(seed: int, node: str, start: int = 0) -> Any:
        return read(node_loader(DataLoader(Squares(), batch_size=10, shuffle=True), node, seed), start, 1)

    assert len({str(order(*which)) for which in ((7, "a"), (8, "a"), (7, "b"), (7, "a", 1))}) == 4
    assert sorted(order(7, "a")[0]) == [i**2 for i in range(10)]


class Noisy(Squares):
    def __getitem__(self, index: int) -> Any:
        return torch.rand(1), torch.tensor(np.random.rand())


def test_workers_draw_from_the_number_of_the_first_batch() -> None:
    def first() -> Any:
        loader = node_loader(DataLoader(Noisy(), batch_size=10, num_workers=1), "a", 7)
        read(loader, 0, 1)
        return [part.tolist() for part in read(loader, 1, 1)[0]]

    assert first() == first()


def test_a_loader_with_state_is_not_read_again() -> None:
    loader = node_loader(Stateful(), "a", 7)
    read(loader, 0, 6)
    stream: Any = loader.dataset
    state, plain = stream.state_dict(), Stateful()
    assert state == {"position": 6, "pass": 1, "loader": {"next": 2}}
    resumed = node_loader(plain, "a", 7)
    assert isinstance(resumed.dataset, Stream)
    resumed.dataset.load_state_dict(state)
    assert read(resumed, 6, 2) == [2, 3]
    assert plain.begun_at == [2]


def test_a_sampler_of_the_package_stays(tmp_path: Any) -> None:
    loader = DataLoader(Squares(), batch_sampler=BlockBatchSampler(10, 2, 7, "a"))
    assert node_loader(loader, "a", 7) is loader


@pytest.mark.parametrize(
    ("loader", "reason"),
    [
        (Squares(), "is a Squares, which has no batches: use torch.utils.data.DataLoader"),
        (7, "is a int, which has no batches"),
        (iter([1]), "is a list_iterator, which can be read only once: use a DataLoader"),
        (DataLoader(Squares(), batch_size=16, drop_last=True), "has no batch: its data set has 10 examples"),
        (DataLoader(Squares(), sampler=DistributedSampler(Squares(), 2, 0)), "has a DistributedSampler, .* remove it"),
    ],
)
def test_what_cannot_be_a_loader_is_named(loader: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^the training loader of a {reason}"):
        node_loader(loader, "a", 7)


def test_a_loader_without_batches_or_with_a_wrong_length_ends_the_run() -> None:
    class Empty(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(())

    with pytest.raises(ValueError, match="the training loader of a has no batch"):
        read(node_loader(DataLoader(Empty()), "a", 7), 0, 1)

    class Wrong(BatchSampler):
        def __len__(self) -> int:
            return 9

    loader = DataLoader(Squares(), batch_sampler=Wrong(RandomSampler(Squares()), 3, False))
    with pytest.raises(ValueError, match="the batch sampler of a has a length of 9, but a pass has 4"):
        read(node_loader(loader, "a", 7), 0, 1)
