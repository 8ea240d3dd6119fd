"""Sends messages between nodes that different processes hold: point to point, over torch.distributed."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from worldlm.rounds.transport import Kind, MessageKey, Transport
from worldlm.topology import Topology

_Kind: TypeAlias = Kind | Literal["state"]
"""state: the state of a node, for process 0."""

_KINDS: tuple[_Kind, ...] = ("ready", "down", "up", "state")

MESSAGE_TIMEOUT = timedelta(days=7)
"""How long a process waits for another: longer than any fit. Probes detect a lost machine earlier."""


class RankLost(RuntimeError):
    """Another process of the run has ended or cannot be reached."""


class ProcessTransport(Transport):
    """Sends messages between the processes that share a world.

    Processes that train one node together form a team. Each holds all nodes of the team, and merges and sends the same
    as the others. It exchanges messages with the process of the same number in other teams.

    Args:
        topology: The world.
        places: The team that holds a node, by the node's name.
        rank: The rank of this process.
        team_size: Number of processes in a team.
        stopped: Returns whether the run is to stop; this process then stops waiting for messages.
    """

    def __init__(
        self,
        topology: Topology,
        places: Mapping[str, int],
        rank: int = 0,
        team_size: int = 1,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._places = places
        self._stopped = stopped
        self._parents = {child.name: node.name for node in topology.nodes.values() for child in node.children}
        self._numbers = {name: number for number, name in enumerate(topology.nodes)}
        self._team, self._member = divmod(rank, team_size)
        self._team_size = team_size
        self._pending: dict[tuple[str, _Kind], list[tuple[Any, Tensor]]] = {}
        """Sends that have not completed, with their tensors, which must stay in memory until then."""

    def is_local(self, name: str) -> bool:
        """Return whether this process holds a node."""
        return self._places[name] == self._team

    def crosses_processes(self, name: str) -> bool:
        """Return whether different processes hold a node and its parent."""
        return name in self._parents and self._places[name] != self._places[self._parents[name]]

    def _rank(self, team: int) -> int:
        return team * self._team_size + self._member

    # ------------------------------------------------------------------ between two processes

    def send(self, key: MessageKey, content: Any) -> None:
        """Send a message. The content may change as soon as this method returns.

        Args:
            key: Identifies the message. Those of one child and kind arrive in the order in which they were sent.
            content: Plain containers and tensors that `torch.load(weights_only=True)` can read.

        Raises:
            RankLost: If the other process is gone.
        """
        self._send(key.child, key.kind, content)

    def _send(self, name: str, kind: _Kind, content: Any) -> None:
        self._wait_for(name, kind)
        if kind == "state":
            to = self._rank(0)
        else:
            to = self._rank(self._places[name if kind == "down" else self._parents[name]])
        payload = _pack(content)
        size = torch.tensor([payload.numel()])
        tag = self._tag(name, kind)
        self._pending[name, kind] = [
            (dist.isend(tensor, to, tag=tag + i), tensor) for i, tensor in enumerate((size, payload))
        ]

    def receive(self, key: MessageKey) -> Any:
        """Wait for a message, and return its content.

        Raises:
            RankLost: If the other process is gone.
            SIGTERMException: If the run is to stop.
        """
        return self._receive(key.child, key.kind)

    def _receive(self, name: str, kind: _Kind) -> Any:
        source = self._rank(self._places[self._parents[name] if kind == "down" else name])
        size, tag = torch.empty(1, dtype=torch.int64), self._tag(name, kind)
        self._wait(dist.irecv(size, source, tag=tag))
        payload = torch.empty(int(size), dtype=torch.uint8)
        self._wait(dist.irecv(payload, source, tag=tag + 1))
        return _unpack(payload)

    def flush(self) -> None:
        """Wait until everything that was sent has arrived."""
        for name, kind in list(self._pending):
            self._wait_for(name, kind)

    def _wait_for(self, name: str, kind: _Kind) -> None:
        for work, _ in self._pending.pop((name, kind), ()):
            self._wait(work)

    def _wait(self, work: Any) -> None:
        """Wait for a message in another thread, so that this thread can react to signals."""
        errors: list[RuntimeError] = []

        def wait() -> None:
            try:
                work.wait(MESSAGE_TIMEOUT)  # without an argument, it would be the timeout for joining
            except RuntimeError as error:
                errors.append(error)

        thread = threading.Thread(target=wait, daemon=True, name="transport")
        thread.start()
        while thread.is_alive():
            thread.join(0.5)
            if self._stopped():
                raise SIGTERMException
        if errors:
            raise to_rank_lost(errors[0]) from errors[0]

    def _tag(self, name: str, kind: _Kind) -> int:
        return 2 * (len(_KINDS) * self._numbers[name] + _KINDS.index(kind))

    # ------------------------------------------------------------------ between all processes

    def gather(self, content: Any) -> list[Any]:
        """Return the content of all teams, in their order. All processes call this at the same point.

        Raises:
            RankLost: If another process is gone.
        """
        return gather_objects(content, self._wait)[self._member :: self._team_size]

    def collect(self, local: Mapping[str, Any]) -> dict[str, Any]:
        """Collect the contents of all nodes at process 0. All processes call this at the same point.

        Args:
            local: The content of each node that this process holds, by name.

        Returns:
            At process 0 the contents of all nodes, in the order of the topology; elsewhere `local`.

        Raises:
            RankLost: If another process is gone.
        """
        if self._team:
            for name, content in local.items():
                self._send(name, "state", content)
            self.flush()
            return dict(local)
        return {name: local[name] if self.is_local(name) else self._receive(name, "state") for name in self._numbers}


def gather_objects(content: Any, wait: Callable[[Any], None] = lambda work: work.wait(MESSAGE_TIMEOUT)) -> list[Any]:
    """Return the content of all processes, in the order of their ranks. All processes call this at the same point.

    Args:
        content: Plain containers and tensors that `torch.load(weights_only=True)` can read.
        wait: Waits for an asynchronous operation of torch.distributed.
    """
    if not dist.is_initialized():
        return [content]
    payload = _pack(content)
    sizes = [torch.empty(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    wait(dist.all_gather(sizes, torch.tensor([payload.numel()]), async_op=True))
    padded = torch.zeros(max(map(int, sizes)), dtype=torch.uint8)
    padded[: payload.numel()] = payload
    payloads = [torch.empty_like(padded) for _ in sizes]
    wait(dist.all_gather(payloads, padded, async_op=True))
    return [_unpack(received[: int(size)]) for received, size in zip(payloads, sizes, strict=True)]


def is_network_error(error: BaseException) -> bool:
    """Return whether torch.distributed could not reach another process; gloo has no exception class of its own."""
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo" in str(error).lower())


def to_rank_lost(error: BaseException) -> RankLost:
    """Return an error of torch.distributed about a lost process as a `RankLost`."""
    return RankLost(f"another process of the run is gone ({short_message(error)}); resume with --ckpt_path last")


def short_message(error: BaseException) -> str:
    """Return the message of an error of torch.distributed without positions in its source code."""
    line = str(error).partition("\n")[0]
    return line.rpartition(".cc:")[2].partition("] ")[2].partition(". ")[0] or line.partition(". ")[0]


def _pack(content: Any) -> Tensor:
    """Serialise plain containers and tensors, uint8 [bytes]."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)


def _unpack(payload: Tensor) -> Any:
    """Undo `_pack`. Nothing in the payload is executed."""
    return torch.load(io.BytesIO(payload.numpy().data), map_location="cpu", weights_only=True)
