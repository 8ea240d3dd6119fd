"""Reads checkpoints.

`read_checkpoint` reads a file; Lightning calls it through `lightning_io.py` when a run resumes. `restore_world` then
restores all nodes; the fit loop calls it. `open_world` opens a file to get the weights of single nodes.
"""

from __future__ import annotations

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
from worldlm.files.regular import check_regular
from worldlm.files.tensor_file import read_tensors
from worldlm.rounds.method import Method
from worldlm.rounds.world import World
from worldlm.topology.errors import join_names, reason, suggest

FORMATS_WITH_NODES = (1, 2, FORMAT)
"""Formats that `open_world` can read. A file without a format has format 1."""


def read_checkpoint(path: str | Path, *, mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint. Nothing in the file is executed.

    Args:
        path: The file.
        mapped: Whether to map the file into memory instead of reading all of it. Unused parts are then not read.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not a complete checkpoint of a model, is damaged, or contains anything but tensors
            and plain values.
    """
    path = check_regular(Path(path))
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        checkpoint: Any = read_tensors(path, mapped=mapped)
    except Exception as error:  # torch.load can raise any exception for a file that is not a checkpoint
        message = (str(error) or type(error).__name__).splitlines()[0]
        names = sorted(other.name for other in path.parent.glob("*.ckpt") if other.name != path.name)
        others = f" (other checkpoints in its folder: {', '.join(names)})" if names else ""
        raise ValueError(f"{path} cannot be read as a checkpoint: {message}{others}") from error
    if not (isinstance(checkpoint, dict) and {"state_dict", "loops"} <= checkpoint.keys()):
        raise ValueError(f"{path} cannot be read as a checkpoint: it was not saved by a trainer")
    return checkpoint


@dataclass(frozen=True, kw_only=True)
class SavedWorld:
    """The nodes of a checkpoint."""

    path: Path
    """The file."""
    hyper_parameters: Mapping[str, Any]
    """The arguments from which the module was built, as plain values."""
    children: Mapping[str, list[str]]
    """Names of every saved node's saved children, by name, parents first. An organisation saves its own node only."""
    tree: Mapping[str, list[str]]
    """Names of every node's children, by name, parents first, saved or not."""
    num_rounds: int
    """Number of finished rounds."""
    within_round: bool
    """Whether it was saved within a round. The weights of federations are then older than those of leaves."""
    states: Mapping[str, Mapping[str, Any]]
    """Saved state of every node, by name; see `NodeState`."""

    def parameters(self, node: str) -> Tensors:
        """Return a node's weights by name. They are mapped from the file, and read when they are used.

        Raises:
            ValueError: If the node does not exist (the error suggests the nearest name), or its weights are not
                tensors.
        """
        if node not in self.states:
            names = list(self.children)
            raise ValueError(f"{self.path} has no node {node!r}; it has {join_names(names, 20)}{suggest(node, names)}")
        weights: Tensors = self.states[node]["parameters"]
        if others := [name for name, value in weights.items() if not isinstance(value, torch.Tensor)]:
            raise ValueError(f"{self.path}: the weights {str(others[0])[:100]} of {node!r} are not a tensor")
        return weights


def open_world(path: str | Path) -> SavedWorld:
    """Open a checkpoint of a world, to get the weights of single nodes.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the checkpoint holds no world, or has an unknown format.
    """
    checkpoint = read_checkpoint(path, mapped=True)
    with as_written(path):
        return _saved_world(Path(path), checkpoint)


def _saved_world(path: Path, checkpoint: Mapping[str, Any]) -> SavedWorld:
    loop = checkpoint["loops"].get("fit_loop", {})
    world = loop.get("state_dict", {}).get("world")
    if world is None:
        raise ValueError(f"{path} cannot be read as a saved world: it holds no world of nodes")
    if world.get("format", 1) not in FORMATS_WITH_NODES:
        known = ", ".join(map(str, FORMATS_WITH_NODES))
        raise ValueError(
            f"{path} cannot be read as a saved world: it has format {world['format']}, but only {known} are known"
        )
    progress, states, tree = loop["epoch_progress"]["current"], world["states"], world["topology"]
    if any(child not in tree for names in tree.values() for child in names):
        raise TypeError("a child is listed but missing from the topology")
    children = {name: [child for child in names if child in states] for name, names in tree.items() if name in states}
    if not children:
        raise TypeError("no node of the topology is in it")
    if any(not isinstance(states[name]["parameters"], Mapping) for name in children):
        raise TypeError("the parameters of a node have the wrong type")
    return SavedWorld(
        path=path,
        hyper_parameters={**checkpoint.get("hyper_parameters", {})},
        children=children,
        tree=tree,
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
    """Restore the state of a world from a checkpoint. If the topology has changed, carry over what still applies.

    Args:
        world: The world of this run; overwritten.
        method: The callbacks of this run.
        saved: The saved state, as `worldlm.checkpoint.write.world_state` returns it.
        model: The live model's weights, by name; only their names, shapes and types matter.
        steps_per_round: Optimizer steps of every data node in one round of this run, by name.
        num_rounds: Rounds that the saved world has finished; None if it was saved within a round.

    Raises:
        ValueError: If the checkpoint has another seed, format or model, or if the run cannot change from the saved
            topology to this one.
    """
    world.changes = check_saved(saved, world.topology, world.description, world.seed, num_rounds)
    world.round = saved["round"]  # until the loop sets it from Lightning's counter, at the start of the next round
    states = {name: NodeState.from_state_dict(state) for name, state in saved["states"].items()}
    for name, state in states.items():
        check_weights(f"of {name}", state.parameters, model)
    check_weights("that all nodes started from", saved["reference"], world.reference)
    check_memories(states, method.callbacks, model)
    check_messages(states, NodeState(parameters=model).parts(frozenset(PARTS), world.partition), method.parts)
    if not world.changes:
        is_local = world.transport.is_local  # the checkpoint of an organisation has its own node only
        world.states = {
            name: states[name] if name in states or is_local(name) else state for name, state in world.states.items()
        }
    else:
        assert num_rounds is not None, "check_saved rejects a topology that changes within a round"
        elsewhere = {name: NodeState(parameters={}) for name in saved["topology"] if name not in states}
        _change_topology(world, method, {**elsewhere, **states}, saved["steps"], steps_per_round, num_rounds)
    for name, state in world.states.items():  # of nodes in other processes, keep all but the tensors
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
    """Move the saved nodes to the new topology. Every process does this for all nodes."""
    world.changed_after = num_rounds
    world.states = carry_over(states, world.changes, world.topology, world.transport.is_local)
    for name, steps in steps_per_round.items():  # so that learning rate schedules count the steps really made
        world.states[name].extra_steps += num_rounds * (saved_steps.get(name, 0) - steps)
    method.on_topology_change(world, world.changes, {**states, **world.states})


@contextmanager
def as_written(path: str | Path | None) -> Iterator[None]:
    """Convert errors about the content of a checkpoint into one that names the file.

    Raises:
        ValueError: If the content is not what WorldLM writes.
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        message = f"{path} cannot be read as a saved world: its content is not what WorldLM writes: {reason(error)}"
        raise ValueError(message) from error
