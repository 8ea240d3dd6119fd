"""Writes checkpoints: collects the state of a world, and writes the file atomically."""

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
from worldlm.storage.page_files import release_shared

if TYPE_CHECKING:
    from typing_extensions import Buffer

_BYTES_BETWEEN_RELEASES = 64_000_000


def world_state(world: World, steps_per_round: Mapping[str, int]) -> dict[str, Any]:
    """Return the state of a world as plain containers and tensors, not copied.

    Args:
        world: The world.
        steps_per_round: Optimizer steps of every data node in one round, by name.

    Returns:
        The entry `states` has the nodes that this process holds.
    """
    return {
        "format": FORMAT,
        "round": world.round,
        "seed": world.seed,
        "noise_key": None if world.noise_key is None else world.noise_key.fingerprint,
        "topology": children_by_name(world.topology),
        "nodes": world.description,
        "steps": dict(steps_per_round),
        "states": {name: state.state_dict() for name, state in world.local_states().items()},
        "reference": world.reference,
    }


def loop_state(
    world: World,
    optimizers: Mapping[str, Any],
    loaders: Mapping[str, Any],
    steps_per_round: Mapping[str, int],
) -> dict[str, Any]:
    """Return the state of all nodes that the fit loop saves, beside its position in the round.

    All processes call this together.

    Args:
        world: The world.
        optimizers: Optimizer state of the nodes that this process holds, by name; some nodes may have none.
        loaders: State of the training loaders that have one, by node.
        steps_per_round: As in `world_state`.

    Returns:
        At process 0 with the states of all nodes; elsewhere with those of the nodes that the process holds.
    """
    state = world_state(world, steps_per_round)
    local = {name: (node, optimizers.get(name), loaders.get(name)) for name, node in state["states"].items()}
    collected = world.transport.collect(local)
    return {
        "world": {**state, "states": {name: node for name, (node, _, _) in collected.items()}},
        "optimizers": {name: optimizer for name, (_, optimizer, _) in collected.items() if optimizer is not None},
        "loaders": {name: loader for name, (_, _, loader) in collected.items() if loader is not None},
    }


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint atomically: into another file in the same folder, which is flushed to the disk and renamed.

    At any time, `path` is either the old file or the new one.

    Raises:
        OSError: If the file cannot be written. The error names the file, and the old file stays.
    """
    with atomic_write(path) as partial, _PageReleasingFile(partial.open("wb", buffering=0)) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch replaces the error of a full disk by its own
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())


class _PageReleasingFile(BufferedWriter):
    """A file that frees, every 64 MB, the memory of the pages that were mapped to be written into it."""

    _written = 0

    def write(self, content: Buffer, /) -> int:
        self._written += memoryview(content).nbytes
        if self._written >= _BYTES_BETWEEN_RELEASES:
            self._written = 0
            release_shared()
        return super().write(content)
