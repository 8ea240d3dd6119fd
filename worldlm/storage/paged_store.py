"""Keeps waiting nodes on disk, and a bounded number of them in memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

from filelock import FileLock, Timeout

from worldlm.federation.messages import (
    Upload,
    download_from_state,
    message_state,
    residual_from_state,
    upload_from_state,
)
from worldlm.federation.parameters import Tensors, num_bytes
from worldlm.federation.state import NodeState
from worldlm.storage.host_memory import give_back_freed_memory
from worldlm.storage.node_store import NodeStore
from worldlm.storage.pages import Pages, fetch
from worldlm.topology import Topology

_HOLES = 1_000_000_000
"""Bytes put away after which the memory they were in is given back to the system."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Paging:
    """Keeps the tensors of waiting nodes on disk, for worlds that memory does not hold.

    Raises:
        ValueError: If the cache is negative.
    """

    cache_gb: float = 1.0
    """Gigabytes (10^9 bytes) of weights of waiting nodes that stay in memory, beside the node at work and the next."""
    folder: str | None = None
    """Where the pages are written; by default `pages` in the run's folder. Best on a fast local disk."""

    def __post_init__(self) -> None:
        """Check the cache's size."""
        if not 0 <= self.cache_gb < float("inf"):
            raise ValueError(f"paging: cache_gb must be at least 0, got {self.cache_gb}")


class PagedStore(NodeStore):
    """The nodes at work in memory, and as many others as the cache holds; the rest on disk.

    Args:
        topology: The tree.
        fit_order: Names of the nodes that train in one round, in their order; a node may train several times.
        settings: How much stays in memory.
        folder: Where the pages are written: into a folder of their own, which goes when the store goes. What runs
            that were killed left there is removed.
    """

    def __init__(self, topology: Topology, fit_order: Sequence[str], settings: Paging, folder: Path) -> None:
        super().__init__()
        self._topology = topology
        self._cache = settings.cache_gb * 1e9
        self._pages = Pages(_own_folder(self, folder))
        self._order = fit_order
        self._place = -1
        self._states: dict[str, NodeState] = {}
        self._on_disk: dict[str, Tensors | None] = {}
        """Of the nodes in memory, least recently brought first: their weights as they are on disk, None if changed."""
        self._ahead: dict[int, tuple[Any, Future[Any]]] = {}
        self._thread = ThreadPoolExecutor(1, "worldlm-pages")
        self._first: Tensors = {}
        self._freed = 0

    def initial_weights(self, weights: Tensors) -> Tensors:
        self._first = self._first or self._pages.put(weights)
        first: Tensors = self._pages.put(self._first)
        return first

    def register(self, states: dict[str, NodeState]) -> None:
        self._states, self._on_disk, self._first = states, {}, {}
        for name in states:
            self._on_disk[name] = None
            self._put(name)

    # ------------------------------------------------------------------ weights and messages

    def load(self, name: str, *, to_write: bool = True) -> None:
        state = self._states[name]
        if name in self._on_disk:
            kept = self._on_disk.pop(name)
        else:
            kept = state.parameters
            state.parameters, state.start = self._fetch(state.parameters), self._fetch(state.start)
        self._on_disk[name] = None if to_write else kept
        self._make_room(name)

    def keep_upload(self, name: str, upload: Upload) -> Upload:
        state = self._states[name]
        if name not in self._on_disk or self._on_disk[name] is not None:
            return upload_from_state(self._pages.put(message_state(upload)))
        both = self._pages.put((state.parameters, message_state(upload)))  # what they share is digested once
        self._on_disk[name], sent = both
        return upload_from_state(sent)

    def _make_room(self, active: str) -> None:
        """Put nodes away, least recently brought first, until the cache holds the others."""
        sizes = {name: self._size(name) for name in self._on_disk if name != active}
        held = sum(sizes.values())
        for name, size in sizes.items():
            if held > self._cache:
                self._put(name)
                held -= size

    def _size(self, name: str) -> int:
        state = self._states[name]
        return num_bytes(state.parameters) + num_bytes(state.start or {})

    def _put(self, name: str) -> None:
        """Put a node away."""
        state, kept = self._states[name], self._on_disk.pop(name)
        self._freed += self._size(name)
        if self._freed > _HOLES:  # small things that stay lie between what is freed, and hold it back
            self._freed = 0
            give_back_freed_memory()
        state.parameters = kept or self._pages.put(state.parameters)
        state.start, state.memory = self._pages.put((state.start, state.memory))
        if state.download is not None:
            state.download = download_from_state(self._pages.put(message_state(state.download)))
        state.uploads = {
            sender: upload_from_state(self._pages.put(message_state(one))) for sender, one in state.uploads.items()
        }
        state.inbox = [residual_from_state(self._pages.put(message_state(one))) for one in state.inbox]

    # ------------------------------------------------------------------ optimizers

    def store_optimizer(self, state: dict[str, Any]) -> dict[str, Any] | None:
        put: dict[str, Any] = self._pages.put(state)
        return put

    def load_optimizer(self, state: dict[str, Any]) -> dict[str, Any]:
        fetched: dict[str, Any] = self._fetch(state)
        return fetched

    # ------------------------------------------------------------------ reading ahead

    def prefetch(self, name: str, optimizers: Mapping[str, dict[str, Any]]) -> None:
        self._ahead = {}
        for following in islice(self._following(name), 1):
            parameters = None if following in self._on_disk else self._states[following].parameters
            for nest in (parameters, optimizers.get(following)):
                if nest is not None:
                    self._ahead[id(nest)] = (nest, self._thread.submit(fetch, nest))

    def _following(self, name: str) -> Iterator[str]:
        """Yield who trains after a node; siblings that take no part now are passed over."""
        number, parent = len(self._order), self._topology.parent(name)
        ways = ((self._place + i) % number for i in range(1, number + 1))
        self._place = next((place for place in ways if self._order[place] == name), self._place)
        for i in range(1, number):
            other = self._order[(self._place + i) % number]
            if parent is None or self._topology.parent(other) is not parent:
                taking_part = True  # as far as one knows here
            else:
                taking_part = other in self._states[parent.name].participants
            if other != name and taking_part and self._states[other].parameters:  # which are elsewhere if it is
                yield other

    def _fetch(self, nest: Any) -> Any:
        """Return a nest with its tensors in memory: read ahead, or read now."""
        wanted, future = self._ahead.pop(id(nest), (None, None))
        return future.result() if future is not None and wanted is nest else fetch(nest)


def _own_folder(owner: object, folder: Path) -> Path:
    """Make a folder that nobody else uses and that goes with its owner; remove those of processes that are gone."""
    folder.mkdir(parents=True, exist_ok=True)
    for lock in folder.glob("*.lock"):
        try:
            with FileLock(lock, timeout=0):
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)
        except Timeout:
            continue  # its process lives
    own = Path(mkdtemp(prefix=f"{os.getpid()}-", dir=folder))
    held = FileLock(own.with_suffix(".lock"), thread_local=False)  # whatever thread the owner goes in
    held.acquire()
    finalize(owner, _remove, own, held)
    return own


def _remove(own: Path, held: FileLock) -> None:
    shutil.rmtree(own, ignore_errors=True)
    held.release()
    Path(held.lock_file).unlink(missing_ok=True)
    with suppress(OSError):  # somebody else's are there
        own.parent.rmdir()
