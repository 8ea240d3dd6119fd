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
    upload_from_state,
)
from worldlm.federation.parameters import Tensors, num_bytes
from worldlm.federation.state import NodeState
from worldlm.storage.host_memory import give_back_freed_memory
from worldlm.storage.node_store import NodeStore
from worldlm.storage.pages import Pages, fetch
from worldlm.topology import Topology

_MAX_FREED_BYTES = 1_000_000_000
"""Bytes of memory that offloaded nodes have freed, after which freed memory is returned to the system."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Paging:
    """Keeps the tensors of waiting nodes on disk, for worlds that do not fit into memory.

    Raises:
        ValueError: If the cache is negative.
    """

    cache_gb: float = 1.0
    """Gigabytes (10^9 bytes) of weights of waiting nodes that stay in memory, besides the active and the next node."""
    folder: str | None = None
    """Where the pages are written; by default `pages` in the run's folder. Use a fast local disk."""

    def __post_init__(self) -> None:
        """Check the cache's size."""
        if not 0 <= self.cache_gb < float("inf"):
            raise ValueError(f"paging: cache_gb must be at least 0, got {self.cache_gb}")


class PagedStore(NodeStore):
    """Keeps the active nodes in memory, and as many others as fit into the cache; the rest is on disk.

    Args:
        topology: The tree.
        fit_order: Names of the nodes that train in one round, in their order. A node may train several times.
        settings: How much stays in memory.
        folder: The pages are written into a new folder in this one, which is removed together with the store. Folders
            that killed runs have left there are removed at the start.
    """

    def __init__(self, topology: Topology, fit_order: Sequence[str], settings: Paging, folder: Path) -> None:
        super().__init__()
        self._topology = topology
        self._cache = settings.cache_gb * 1e9
        self._pages = Pages(_own_folder(self, folder))
        self._order = fit_order
        self._position = -1
        """Position of the active node in the fit order."""
        self._states: dict[str, NodeState] = {}
        self._in_memory: dict[str, Tensors | None] = {}
        """Weights on disk of the nodes in memory, least recently loaded first; None if they may have changed since."""
        self._prefetched: dict[int, tuple[Any, Future[Any]]] = {}
        """Nests that are prefetched, by their id."""
        self._thread = ThreadPoolExecutor(1, "worldlm-pages")
        self._first: Tensors = {}
        self._freed = 0

    def initial_weights(self, weights: Tensors) -> Tensors:
        self._first = self._first or self._pages.put(weights)
        first: Tensors = self._pages.put(self._first)
        return first

    def register(self, states: dict[str, NodeState]) -> None:
        self._states, self._in_memory, self._first = states, {}, {}
        for name in states:
            self._in_memory[name] = None
            self._offload(name)

    # ------------------------------------------------------------------ weights and messages

    def load(self, name: str, *, to_write: bool = True) -> None:
        state = self._states[name]
        if name in self._in_memory:
            on_disk = self._in_memory.pop(name)
        else:
            on_disk = state.parameters
            state.parameters, state.start = self._fetch(state.parameters), self._fetch(state.start)
        self._in_memory[name] = None if to_write else on_disk
        self._shrink_cache(name)

    def keep_upload(self, name: str, upload: Upload) -> Upload:
        state = self._states[name]
        if name not in self._in_memory or self._in_memory[name] is not None:
            return upload_from_state(self._pages.put(message_state(upload)))
        # in one call, which digests tensors that the weights and the upload share only once
        self._in_memory[name], stored = self._pages.put((state.parameters, message_state(upload)))
        return upload_from_state(stored)

    def _shrink_cache(self, active: str) -> None:
        """Offload nodes, least recently loaded first, until the others fit into the cache."""
        sizes = {name: self._size(name) for name in self._in_memory if name != active}
        total = sum(sizes.values())
        for name, size in sizes.items():
            if total > self._cache:
                self._offload(name)
                total -= size

    def _size(self, name: str) -> int:
        state = self._states[name]
        return num_bytes(state.parameters) + num_bytes(state.start or {})

    def _offload(self, name: str) -> None:
        """Move a node's tensors to disk."""
        state, on_disk = self._states[name], self._in_memory.pop(name)
        self._freed += self._size(name)
        if self._freed > _MAX_FREED_BYTES:  # small allocations between freed tensors keep that memory in the process
            self._freed = 0
            give_back_freed_memory()
        state.parameters = on_disk or self._pages.put(state.parameters)
        state.start, state.memory = self._pages.put((state.start, state.memory))
        if state.download is not None:
            state.download = download_from_state(self._pages.put(message_state(state.download)))
        state.uploads = {
            sender: upload_from_state(self._pages.put(message_state(upload)))
            for sender, upload in state.uploads.items()
        }

    # ------------------------------------------------------------------ optimizers

    def store_optimizer(self, state: dict[str, Any]) -> dict[str, Any] | None:
        stored: dict[str, Any] = self._pages.put(state)
        return stored

    def load_optimizer(self, state: dict[str, Any]) -> dict[str, Any]:
        loaded: dict[str, Any] = self._fetch(state)
        return loaded

    # ------------------------------------------------------------------ prefetch

    def prefetch(self, name: str, optimizers: Mapping[str, dict[str, Any]]) -> None:
        self._prefetched = {}
        for following in islice(self._following(name), 1):
            parameters = None if following in self._in_memory else self._states[following].parameters
            for nest in (parameters, optimizers.get(following)):
                if nest is not None:
                    self._prefetched[id(nest)] = (nest, self._thread.submit(fetch, nest))

    def _following(self, name: str) -> Iterator[str]:
        """Yield the nodes that train after a node, without siblings that do not participate in this sub-round."""
        number, parent = len(self._order), self._topology.parent(name)
        positions = ((self._position + i) % number for i in range(1, number + 1))
        self._position = next((position for position in positions if self._order[position] == name), self._position)
        for i in range(1, number):
            other = self._order[(self._position + i) % number]
            if parent is None or self._topology.parent(other) is not parent:
                participates = True  # its parent may not have drawn the participants yet
            else:
                participates = other in self._states[parent.name].participants
            if other != name and participates and self._states[other].parameters:  # empty for another process's node
                yield other

    def _fetch(self, nest: Any) -> Any:
        """Return nested containers with their tensors in memory, prefetched or read now."""
        prefetched, future = self._prefetched.pop(id(nest), (None, None))
        return future.result() if future is not None and prefetched is nest else fetch(nest)


def _own_folder(owner: object, folder: Path) -> Path:
    """Make a folder that is removed together with its owner, and remove the folders of processes that have ended."""
    folder.mkdir(parents=True, exist_ok=True)
    for lock in folder.glob("*.lock"):
        try:
            with FileLock(lock, timeout=0):
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)
        except Timeout:
            continue  # its process still runs
    new_folder = Path(mkdtemp(prefix=f"{os.getpid()}-", dir=folder))
    new_lock = FileLock(new_folder.with_suffix(".lock"), thread_local=False)  # any thread may delete the owner
    new_lock.acquire()
    finalize(owner, _remove, new_folder, new_lock)
    return new_folder


def _remove(folder: Path, lock: FileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    lock.release()
    Path(lock.lock_file).unlink(missing_ok=True)
    with suppress(OSError):  # other processes have folders there
        folder.parent.rmdir()
