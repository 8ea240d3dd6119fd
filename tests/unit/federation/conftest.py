"""Models whose tensors are loaded on access, with a count of the coordinates in memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from weakref import finalize

import pytest
import torch
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]


class LazyModel(Mapping[str, Tensor]):
    """Draws a new tensor on every access, and counts the coordinates of all tensors that still exist."""

    def __init__(self, shapes: Shapes, seed: int, held: dict[str, int]) -> None:
        self.shapes, self.seed, self.held = shapes, seed, held

    def __getitem__(self, name: str) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + sum(map(ord, name)))
        tensor = torch.randn(self.shapes[name], generator=generator)
        self.held["now"] += tensor.numel()
        self.held["most"] = max(self.held["most"], self.held["now"])
        finalize(tensor.untyped_storage(), self._release, tensor.numel())
        return tensor

    def _release(self, number: int) -> None:
        self.held["now"] -= number

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


@pytest.fixture
def lazy_models() -> Callable[..., tuple[Sequence[LazyModel], Callable[[], int]]]:
    """Return a builder of models, which also returns a function for the largest number of coordinates in memory."""

    def build(shapes: Shapes, number: int, *, seed: int = 0) -> tuple[Sequence[LazyModel], Callable[[], int]]:
        held = {"now": 0, "most": 0}
        return [LazyModel(shapes, seed + 1000 * i, held) for i in range(number)], lambda: held["most"]

    return build
