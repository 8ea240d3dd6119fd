"""Messages between nodes that different processes hold: point to point, over torch.distributed."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from worldlm.rounds.transport import Kind, Transport
from worldlm.topology import Topology

_KINDS: tuple[Kind, ...] = ("ready", "down", "up", "state")

MESSAGE_TIMEOUT = timedelta(days=7)
"""How long a process waits for another: longer than any fit. Machines that are lost are found by probes meanwhile."""


class RankLost(RuntimeError):
    """Another process of the run is gone."""


class ProcessTransport(Transport):
    """Sends messages between the processes that share a world.

    Where several processes train one node together, they form a team: each holds all nodes of the team, merges and
    sends the same as the others, and exchanges messages with the process of its own number in other teams.

    Args:
        topology: The world.
        places: The team that holds a node, by its name.
        rank: This process.
        team_size: Processes of a team.
        stopped: Whether the run is to stop, which ends all waiting.
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
        self._under_way: dict[tuple[str, Kind], list[tuple[Any, Tensor]]] = {}

    def is_local(self, name: str) -> bool:
        """Whether this process holds a node."""
        return self._places[name] == self._team

    def crosses_processes(self, name: str) -> bool:
        """Whether a node and its parent are held by different processes."""
        return name in self._parents and self._places[name] != self._places[self._parents[name]]

    def _rank(self, team: int) -> int:
        return team * self._team_size + self._member

    # ------------------------------------------------------------------ between two

    def send(self, name: str, kind: Kind, content: Any) -> None:
        """Send to, or from, a node: plain containers and tensors, which may change as soon as this returns.

        Args:
            name: The child of the two nodes that talk.
            kind: What is sent; `down` goes to the child, the others come from it.
            content: What `torch.load(weights_only=True)` reads.

        Raises:
            RankLost: If the other process is gone.
        """
        self._wait_for(name, kind)
        if kind == "state":
            to = self._rank(0)
        else:
            to = self._rank(self._places[name if kind == "down" else self._parents[name]])
        payload = _pack(content)
        size = torch.tensor([payload.numel()])
        tag = self._tag(name, kind)
        self._under_way[name, kind] = [(dist.isend(one, to, tag=tag + i), one) for i, one in enumerate((size, payload))]

    def receive(self, name: str, kind: Kind) -> Any:
        """Wait for what `send` sends.

        Raises:
            RankLost: If the other process is gone.
            SIGTERMException: If the run is to stop.
        """
        source = self._rank(self._places[self._parents[name] if kind == "down" else name])
        size, tag = torch.empty(1, dtype=torch.int64), self._tag(name, kind)
        self._wait(dist.irecv(size, source, tag=tag))
        payload = torch.empty(int(size), dtype=torch.uint8)
        self._wait(dist.irecv(payload, source, tag=tag + 1))
        return _unpack(payload)

    def flush(self) -> None:
        """Wait until all that was sent has arrived."""
        for name, kind in list(self._under_way):
            self._wait_for(name, kind)

    def _wait_for(self, name: str, kind: Kind) -> None:
        for work, _ in self._under_way.pop((name, kind), ()):
            self._wait(work)

    def _wait(self, work: Any) -> None:
        """Wait for a message in another thread, so that signals are heard meanwhile."""
        failed: list[RuntimeError] = []

        def wait() -> None:
            try:
                work.wait(MESSAGE_TIMEOUT)  # else that of joining
            except RuntimeError as error:
                failed.append(error)

        waiting = threading.Thread(target=wait, daemon=True, name="transport")
        waiting.start()
        while waiting.is_alive():
            waiting.join(0.5)
            if self._stopped():
                raise SIGTERMException
        if failed:
            raise to_rank_lost(failed[0]) from failed[0]

    def _tag(self, name: str, kind: Kind) -> int:
        return 2 * (len(_KINDS) * self._numbers[name] + _KINDS.index(kind))

    # ------------------------------------------------------------------ between all

    def gather(self, content: Any) -> list[Any]:
        """Return the content of all teams, in their order; all processes call this at the same point.

        Raises:
            RankLost: If another process is gone.
        """
        return gather_objects(content, self._wait)[self._member :: self._team_size]

    def collect(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Bring what belongs to nodes to process 0; all processes call this at the same point.

        Args:
            own: What belongs to the nodes that are held here, by name.

        Returns:
            At process 0 that of all nodes, in the order of the topology; elsewhere `own`.

        Raises:
            RankLost: If another process is gone.
        """
        if self._team:
            for name, content in own.items():
                self.send(name, "state", content)
            self.flush()
            return dict(own)
        return {name: own[name] if self.is_local(name) else self.receive(name, "state") for name in self._numbers}


def gather_objects(content: Any, wait: Callable[[Any], None] = lambda work: work.wait(MESSAGE_TIMEOUT)) -> list[Any]:
    """Return the content of all processes, in their order; all processes call this at the same point.

    Args:
        content: What `torch.load(weights_only=True)` reads.
        wait: Waits for what is under way.
    """
    if not dist.is_initialized():
        return [content]
    payload = _pack(content)
    sizes = [torch.empty(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    wait(dist.all_gather(sizes, torch.tensor([payload.numel()]), async_op=True))
    padded = torch.zeros(max(map(int, sizes)), dtype=torch.uint8)
    padded[: payload.numel()] = payload
    found = [torch.empty_like(padded) for _ in sizes]
    wait(dist.all_gather(found, padded, async_op=True))
    return [_unpack(one[: int(size)]) for one, size in zip(found, sizes, strict=True)]


def is_network_error(error: BaseException) -> bool:
    """Whether torch.distributed could not reach another process; gloo has no class of error for it."""
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo" in str(error).lower())


def to_rank_lost(error: BaseException) -> RankLost:
    """Return what torch.distributed says of another process that does not answer in our words."""
    return RankLost(f"another process of the run is gone ({short_message(error)}); go on with --ckpt_path last")


def short_message(error: BaseException) -> str:
    """Return what torch.distributed says without places in its source."""
    told = str(error).partition("\n")[0]
    return told.rpartition(".cc:")[2].partition("] ")[2].partition(". ")[0] or told.partition(". ")[0]


def _pack(content: Any) -> Tensor:
    """Write plain containers and tensors down, uint8 [bytes]."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)


def _unpack(payload: Tensor) -> Any:
    """Undo `_pack`; executes nothing, whatever it is handed."""
    return torch.load(io.BytesIO(payload.numpy().data), map_location="cpu", weights_only=True)
