"""Writing checkpoints: what a checkpoint holds of a world, and a file that is whole or not there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from io import BufferedWriter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from worldlm.checkpoint.validate import FORMAT, children_by_name
from worldlm.files.atomic_write import atomic_write
from worldlm.rounds.world import World
from worldlm.storage.page_files import forget

if TYPE_CHECKING:
    from typing_extensions import Buffer

_BYTES_BETWEEN = 64_000_000


def world_state(world: World, steps_per_round: Mapping[str, int]) -> dict[str, Any]:
    """Return a world as plain containers and tensors, not copied; `states` of the nodes that this process holds.

    Args:
        world: The world.
        steps_per_round: Optimizer steps of every data node in one round, by name.
    """
    return {
        "format": FORMAT,
        "round": world.round,
        "seed": world.seed,
        "topology": children_by_name(world.topology),
        "nodes": world.description,
        "steps": dict(steps_per_round),
        "states": {name: state.state_dict() for name, state in world.local_states().items()},
        "reference": world.reference,
    }


def loop_state(
    world: World,
    optimizers: Mapping[str, Any],
    steps_per_round: Mapping[str, int],
    *,
    cursor: int,
    fitting: bool,
    active: str,
) -> dict[str, Any]:
    """Return what the fit loop saves: where the round stands, and all nodes. All processes call this together.

    Args:
        world: The world.
        optimizers: State of the optimizer of every node that this process holds, by name; some may have none.
        steps_per_round: As in `world_state`.
        cursor: Position in the round's program.
        fitting: Whether the step at the cursor is a fit that has begun.
        active: Name of the node whose weights are in the live module.

    Returns:
        At process 0 the states of all nodes; elsewhere those of its own.
    """
    state = world_state(world, steps_per_round)
    own = {name: (node, optimizers.get(name)) for name, node in state["states"].items()}
    collected = world.transport.collect(own)
    return {
        "cursor": cursor,
        "fitting": fitting,
        "active": active,
        "world": {**state, "states": {name: node for name, (node, _) in collected.items()}},
        "optimizers": {name: optimizer for name, (_, optimizer) in collected.items() if optimizer is not None},
    }


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint beside its target, flush it to the disk, and rename it: `path` is the old file or the new one.

    Raises:
        OSError: If it cannot be written, with its name; the old file stays.
    """
    with atomic_write(path) as partial, _PageReleasingFile(partial.open("wb", buffering=0)) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch hides the error of a full disk behind one of its own
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())


class _PageReleasingFile(BufferedWriter):
    """A file that, every 64 MB, releases the memory of pages that were read from disk to be written into it."""

    _written = 0

    def write(self, content: Buffer, /) -> int:
        self._written += memoryview(content).nbytes
        if self._written >= _BYTES_BETWEEN:
            self._written = 0
            forget()
        return super().write(content)
