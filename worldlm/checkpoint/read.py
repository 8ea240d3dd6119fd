"""Reading checkpoints: the file, one node out of it, or the whole world to resume from."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from worldlm.checkpoint.validate import FORMAT, check_memories, check_messages, check_saved, check_weights
from worldlm.federation.membership import carry_over
from worldlm.federation.parameters import PARTS, Tensors, clone
from worldlm.federation.state import NodeState
from worldlm.rounds.method import Method
from worldlm.rounds.world import World
from worldlm.topology.errors import join_names, reason, suggest

FORMATS_WITH_NODES = (1, 2, FORMAT)
"""Formats in which nodes and their weights are where `open_world` looks; a file without a format is of format 1."""


def read_checkpoint(path: str | Path, *, mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Args:
        path: The file.
        mapped: Whether to map it into memory instead of reading it whole: what is not used is not read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a whole checkpoint of a model, is not what was written there, or holds anything but
            tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        _check(path)
        checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # what a reader stumbles over in a foreign file is anybody's guess
        said = (str(error) or type(error).__name__).splitlines()[0]
        others = sorted(one.name for one in path.parent.glob("*.ckpt") if one.name != path.name)
        beside = f" (beside it: {', '.join(others)})" if others else ""
        raise ValueError(f"{path} cannot be read as a checkpoint: {said}{beside}") from error
    if not (isinstance(checkpoint, dict) and {"state_dict", "loops"} <= checkpoint.keys()):
        raise ValueError(f"{path} cannot be read as a checkpoint: it is not one that a trainer saved")
    return checkpoint


def _check(path: Path) -> None:
    """Compare a checkpoint with the checksums in it: torch reads it without looking at them.

    Raises:
        ValueError: If a byte that counts is not what was written.
    """
    if not zipfile.is_zipfile(path):
        return  # cut short, or no checkpoint at all, as torch will say
    with zipfile.ZipFile(path) as archive:
        if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
            raise ValueError("it is compressed, which torch never does: what is in it may be of any size")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"it is damaged: the checksum of {damaged} differs")


@dataclass(frozen=True, kw_only=True)
class SavedWorld:
    """The nodes of a checkpoint."""

    path: Path
    """The checkpoint."""
    hyper_parameters: Mapping[str, Any]
    """What the module was built with, as plain values."""
    children: Mapping[str, list[str]]
    """Names of every node's children, by name, parents first."""
    num_rounds: int
    """Rounds that had ended."""
    within_round: bool
    """Whether it was saved before the round that followed had ended: federations are then older than leaves."""
    states: Mapping[str, Mapping[str, Any]]
    """What is kept of every node, by name; see `NodeState`."""

    def parameters(self, node: str) -> Tensors:
        """Return a node's weights by name, as they lie in the file: read where they are used.

        Raises:
            ValueError: If there is no such node, with the nearest name.
        """
        if node not in self.states:
            names = list(self.children)
            raise ValueError(f"{self.path} has no node {node!r}; it has {join_names(names, 20)}{suggest(node, names)}")
        weights: Tensors = self.states[node]["parameters"]
        if strange := [name for name, one in weights.items() if not isinstance(one, torch.Tensor)]:
            raise ValueError(f"{self.path}: the weights {str(strange[0])[:100]} of {node!r} are none")
        return weights


def open_world(path: str | Path) -> SavedWorld:
    """Open a checkpoint of a world.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is none of a world, or of another format.
    """
    checkpoint = read_checkpoint(path, mapped=True)
    with as_written(path):
        return _opened(Path(path), checkpoint)


def _opened(path: Path, checkpoint: Mapping[str, Any]) -> SavedWorld:
    loop = checkpoint["loops"].get("fit_loop", {})
    world = loop.get("state_dict", {}).get("world")
    if world is None or world.get("format", 1) not in FORMATS_WITH_NODES:
        known = ", ".join(map(str, FORMATS_WITH_NODES))
        told = (
            "it holds no world of nodes" if world is None else f"it is of format {world['format']}, known are {known}"
        )
        raise ValueError(f"{path} cannot be read as a saved world: {told}")
    progress, states, children = loop["epoch_progress"]["current"], world["states"], world["topology"]
    if any(not isinstance(states[name]["parameters"], Mapping) for name in children):
        raise TypeError("the parameters of a node have the wrong type")
    if any(below not in children for names in children.values() for below in names):
        raise TypeError("a child is listed but missing from the topology")
    return SavedWorld(
        path=path,
        hyper_parameters={**checkpoint.get("hyper_parameters", {})},
        children=children,
        num_rounds=int(progress["processed"]),
        within_round=bool(progress["started"] > progress["processed"]),
        states=states,
    )


def restore_world(
    world: World,
    method: Method,
    saved: Mapping[str, Any],
    model: Tensors,
    steps_per_round: Mapping[str, int],
    num_rounds: int | None = None,
) -> None:
    """Restore what `worldlm.checkpoint.write.world_state` returned; carry over what still applies if the tree changed.

    Args:
        world: The world of this run, overwritten.
        method: Its callbacks.
        saved: What was saved.
        model: The live model's weights, by name; only their names, shapes and types matter.
        steps_per_round: Optimizer steps of every data node in one round of this run, by name.
        num_rounds: Rounds that the saved world has finished; None if it was saved within one.

    Raises:
        ValueError: If the checkpoint is of another seed, version or model, or of a topology that this one cannot
            follow.
    """
    world.changes = check_saved(saved, world.topology, world.description, world.seed, num_rounds)
    world.round = saved["round"]
    states = {name: NodeState.from_state_dict(state) for name, state in saved["states"].items()}
    for name, state in states.items():
        check_weights(f"of {name}", state.parameters, model)
    check_weights("that all started from", saved["reference"], world.reference)
    check_memories(states, method.callbacks, model)
    check_messages(states, NodeState(parameters=model).parts(frozenset(PARTS), world.partition), method.parts)
    if not world.changes:
        world.states = {name: states[name] for name in world.topology.nodes}
    elif num_rounds is not None:
        _change_topology(world, method, states, saved["steps"], steps_per_round, num_rounds)
    for name, state in world.states.items():
        world.states[name] = state if world.transport.is_local(name) else NodeState(**state.figures())
    world.store.register(world.states)
    world.reference = world.store.to_storage(clone(saved["reference"]))


def _change_topology(
    world: World,
    method: Method,
    states: Mapping[str, NodeState],
    saved_steps: Mapping[str, int],
    steps_per_round: Mapping[str, int],
    num_rounds: int,
) -> None:
    """Move the saved nodes to the new topology; every process does this for all nodes."""
    world.changed_after = num_rounds
    world.states = carry_over(states, world.changes, world.topology, world.transport.is_local)
    for name, steps in steps_per_round.items():
        world.states[name].extra_steps += num_rounds * (saved_steps.get(name, 0) - steps)
    method.on_topology_change(world, world.changes, {**states, **world.states})


@contextmanager
def as_written(path: str | Path | None) -> Iterator[None]:
    """Say of a checkpoint that it is not as worldlm writes it, where something stumbles over what it holds.

    Raises:
        ValueError: If so.
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        told = f"{path} cannot be read as a saved world: not as worldlm writes it: {reason(error)}"
        raise ValueError(told) from error
