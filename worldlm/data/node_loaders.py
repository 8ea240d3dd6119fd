"""Plain dataloaders as the data of a node: every batch has a number, at which a fit or a resumed run continues."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.data import sized_len
from lightning.fabric.utilities.seed import pl_worker_init_function
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from torch.utils.data.distributed import DistributedSampler

from worldlm.data.samplers import NodeSampler
from worldlm.federation.seeds import derive_seed

log = logging.getLogger(__name__)


def node_loader(loader: Any, node: str, seed: int) -> DataLoader[Any]:
    """Return a loader whose `batch_sampler` has `start` and `length`, with the batches of a plain one.

    The data are read in repeated passes. What a loader draws at random is drawn from a seed of the pass. A data set
    with indices continues at any batch. An iterable one is read again from its beginning after a restart, unless its
    loader has `state_dict` and `load_state_dict`.

    Args:
        loader: A `DataLoader`, or an iterable of batches that can be read several times. A loader whose sampler has
            `start` and `length` is returned unchanged.
        node: The node's name.
        seed: The run's seed.

    Raises:
        ValueError: If the loader has no batches, can be read only once, or leaves out batches for other processes.
    """
    sampler: Any = getattr(loader, "batch_sampler", None)
    if hasattr(sampler, "start") and hasattr(sampler, "length"):
        return loader  # type: ignore[no-any-return]
    if problem := _unsuitable(loader):
        raise ValueError(f"the training loader of {node} {problem}")
    if _has_indices(loader):
        if len(sampler) == 0:
            raise ValueError(
                f"the training loader of {node} has no batch: its data set has {len(loader.dataset)} examples"
            )
        plain: DataLoader[Any] = copy.copy(loader)
        generator = torch.Generator()
        passes = PassSampler(sampler, loader, generator, seed, node)
        workers = loader.worker_init_fn or partial(pl_worker_init_function, rank=0)
        # `DataLoader` allows no change of its attributes; a new one could not have the class of this one
        vars(plain).update(batch_sampler=passes, generator=generator, worker_init_fn=workers, _iterator=None)
        return plain
    numbers = _Numbers(1, getattr(loader, "batch_size", None) or 1, node)
    return DataLoader(
        Stream(loader, seed, node), batch_sampler=numbers, collate_fn=_only_item, generator=torch.Generator()
    )


def _unsuitable(loader: Any) -> str:
    """Return why a loader cannot provide the batches of a node, or an empty string if it can."""
    kind = type(loader).__name__
    if isinstance(getattr(loader, "sampler", None), DistributedSampler):
        return (
            "has a DistributedSampler, which leaves out batches: remove it; WorldTrainer distributes whole nodes over "
            "the processes"
        )
    if isinstance(loader, Iterator):
        return f"is a {kind}, which can be read only once: use a DataLoader"
    is_dataset = isinstance(loader, Dataset) or hasattr(loader, "features")  # of Hugging Face
    if not isinstance(loader, DataLoader) and (
        is_dataset or isinstance(loader, str) or not hasattr(loader, "__iter__")
    ):
        return f"is a {kind}, which has no batches: use torch.utils.data.DataLoader(..., batch_size=...)"
    return ""


def _has_indices(loader: Any) -> bool:
    """Return whether a loader is torch's own, and looks up batches of indices in its data set."""
    is_plain = isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__
    return (
        is_plain
        and sized_len(loader.batch_sampler) is not None
        and not isinstance(loader.dataset, IterableDataset)
        and not hasattr(loader, "state_dict")
    )


class PassSampler(Sampler[Any]):
    """Repeated passes over the batches of a plain batch sampler, each with a seed of its own.

    Args:
        batches: The plain batch sampler.
        loader: Its loader.
        generator: The loader's new generator, from which its workers are seeded.
        seed: The run's seed.
        node: The node's name.

    Raises:
        ValueError: While it is read, if a pass has another number of batches than its sampler's length.
    """

    def __init__(
        self, batches: Sampler[Any], loader: DataLoader[Any], generator: torch.Generator, seed: int, node: str
    ) -> None:
        self._batches = batches
        self._generator = generator
        self._seed = seed
        self._node = node
        self.batch_size = loader.batch_size or getattr(batches, "batch_size", None) or 1
        """Examples per batch."""
        self.has_rest = not getattr(batches, "drop_last", False) and len(loader.dataset) % self.batch_size > 0  # type: ignore[arg-type]
        """Whether the last batch of a pass has fewer examples."""
        self.start = 0
        """Number of batches that the node drew in earlier fits."""
        self.length = len(batches)  # type: ignore[arg-type]
        """Number of batches of this fit; initially one pass."""

    def __len__(self) -> int:
        """Return the number of batches of this fit."""
        return self.length

    def __iter__(self) -> Iterator[Any]:
        """Return the batches of the fit that `start` and `length` describe."""
        self._generator.manual_seed(derive_seed(self._seed, self._node, self.start, "workers"))
        return self._from(self.start, self.start + self.length)

    def _from(self, step: int, end: int) -> Iterator[Any]:
        while step < end:
            number, first = divmod(step, len(self._batches))  # type: ignore[arg-type]
            batches = self._pass(number)[first : first + end - step]
            yield from batches
            step += len(batches)

    def _pass(self, number: int) -> list[Any]:
        """Return all batches of a pass, as lists of indices."""
        sampler: Any = self._batches
        with _seeded(derive_seed(self._seed, self._node, "pass", number)) as seed:
            _begin_pass((sampler, getattr(sampler, "sampler", None)), number, seed)
            batches = [*sampler]
        if len(batches) != len(sampler):
            raise ValueError(
                f"the batch sampler of {self._node} has a length of {len(sampler)}, but a pass has {len(batches)}"
            )
        return batches


class _Numbers(NodeSampler):
    """The numbers of a node's batches, one by one."""

    def batch(self, step: int) -> list[int]:
        return [step]


class Stream(Dataset[Any]):
    """The batches of an iterable by their number, in repeated passes.

    A number other than the next is found by reading from the beginning. What is drawn at random in this process, by
    torch, NumPy or Python, is drawn from a seed of the batch, so that each reading gives the same batches.

    Args:
        loader: The iterable.
        seed: The run's seed.
        node: The node's name.

    Raises:
        ValueError: While it is read, if there is no batch.
    """

    def __init__(self, loader: Any, seed: int, node: str) -> None:
        self.loader = loader
        self._seed = seed
        self._node = node
        self._position = 0
        self._pass = 0
        self._iterator: Iterator[Any] | None = None

    def __getitem__(self, number: int) -> Any:
        """Return a batch."""
        if number < self._position:
            self._position, self._pass, self._iterator = 0, 0, None
        if number > self._position:
            log.info("%s: reading its first %d batches again, to continue after them", self._node, number)
        while self._position < number:
            self._next()
        return self._next()

    def _next(self) -> Any:
        with _seeded(derive_seed(self._seed, self._node, "batch", self._position)) as seed:
            is_new = self._iterator is None
            if self._iterator is None:
                holders = (self.loader, *(getattr(self.loader, name, None) for name in ("dataset", "sampler")))
                _begin_pass(holders, self._pass, seed)
                self._iterator = iter(self.loader)
            try:
                batch = next(self._iterator)
            except StopIteration:
                if is_new:
                    raise ValueError(f"the training loader of {self._node} has no batch") from None
                self._iterator = None
        if self._iterator is None:
            self._pass += 1
            return self._next()
        self._position += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position and the state of the loader; empty if the loader has none."""
        if self._iterator is None or not hasattr(self.loader, "load_state_dict"):
            return {}
        return {"position": self._position, "pass": self._pass, "loader": self.loader.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, before the first batch is read."""
        self._position, self._pass = int(state["position"]), int(state["pass"])
        self.loader.load_state_dict(state["loader"])


@contextmanager
def _seeded(seed: int) -> Iterator[int]:
    """Seed the global generators of torch (on the CPU), NumPy and Python, and restore them at the end."""
    with isolate_rng(include_cuda=False):
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield seed


def _begin_pass(holders: tuple[Any, ...], number: int, seed: int) -> None:
    """Seed the generators of loaders and samplers, and set the number of the pass where they have one."""
    for holder in holders:
        if isinstance(generator := getattr(holder, "generator", None), torch.Generator):
            generator.manual_seed(seed)
        if hasattr(holder, "set_epoch"):
            holder.set_epoch(number)


def _only_item(batches: list[Any]) -> Any:
    """Return the only batch of a list."""
    return batches[0]
