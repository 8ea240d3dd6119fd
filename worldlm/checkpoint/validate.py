"""Validates checkpoints: whether their content is what WorldLM writes, and whether this run can resume from it."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from worldlm.federation.admission import misfits
from worldlm.federation.messages import Download, Residual, SavedResidual, Upload, residual_from_state
from worldlm.federation.parameters import PARTS, Part, Tensors
from worldlm.federation.state import NodeState
from worldlm.federation.type_checks import matches_type
from worldlm.rounds.callback import RoundCallback
from worldlm.topology import Topology
from worldlm.topology.changes import Changes, Described, compare
from worldlm.topology.errors import join_names

FORMAT = 3
"""Format of the checkpoints that this version writes. It increases whenever their content changes its meaning."""


def children_by_name(topology: Topology) -> dict[str, list[str]]:
    """Return every node's children by name."""
    return {name: [child.name for child in node.children] for name, node in topology.nodes.items()}


def check_weights(whose: str, saved: Tensors, model: Tensors) -> None:
    """Check that saved weights fit a model.

    Args:
        whose: Describes the weights in the error, such as "of sea".
        saved: The saved weights, by name.
        model: The model's weights, by name; only their names, shapes and types matter.

    Raises:
        ValueError: Names the first weights that do not fit.
    """
    for name in model | saved:
        in_checkpoint, in_model = _described(saved.get(name)), _described(model.get(name))
        if in_checkpoint != in_model:
            raise ValueError(
                f"the weights {name} {whose} are {in_checkpoint} in the checkpoint, but {in_model} in this model"
            )


def check_messages(states: Mapping[str, NodeState], model: Mapping[Part, Tensors], parts: frozenset[Part]) -> None:
    """Check that the messages that wait at the nodes of a saved world fit a model.

    Args:
        states: The world's nodes, by name.
        model: The model's weights, by part; only their names and shapes matter.
        parts: Parts whose weights every message must contain.

    Raises:
        ValueError: Names the first node that has a message which does not fit.
    """
    for node, state in states.items():
        messages: list[Download | Upload] = [*state.uploads.values()]
        messages += [] if state.download is None else [state.download]
        if absent := [part for part in PARTS if part in parts and any(part not in sent.parts for sent in messages)]:
            raise ValueError(
                f"a message at {node} in the checkpoint lacks {', '.join(absent)}, which the method of this run merges"
            )
        pairs = [(tensors, model[part]) for message in messages for part, tensors in message.parts.items()]
        residuals = [
            *_residuals(state.memory),
            *(residual for message in messages for residual in message.residuals),
        ]
        for residual in residuals:
            pairs += [(residual.keys, model["keys"]), (residual.values, model["values"])]
        for tensors, expected in pairs:
            for misfit in misfits(tensors, expected):
                raise ValueError(f"a message at {node} in the checkpoint does not fit this model: {misfit}")


def _residuals(memory: Any) -> Iterator[Residual]:
    if matches_type(memory, SavedResidual):
        yield residual_from_state(memory)
    elif isinstance(memory, dict | list):
        for value in memory.values() if isinstance(memory, dict) else memory:
            yield from _residuals(value)


def check_memories(states: Mapping[str, NodeState], callbacks: Iterable[RoundCallback], model: Tensors) -> None:
    """Check that the callbacks' memories at the nodes of a saved world have their declared type and fit a model.

    Args:
        states: The world's nodes, by name.
        callbacks: The callbacks of the method.
        model: The model's weights, by name. A tensor in a memory that has the name of a weight must have its shape.

    Raises:
        ValueError: Names the first callback and node whose memory is not valid.
    """
    for callback in callbacks:
        for node, state in states.items():
            memory_of = f"the memory of {type(callback).__name__} at {node}"
            memory = state.memory.get(callback.state_key, {})
            if not matches_type(memory, callback.memory_schema):
                raise ValueError(f"{memory_of} does not have its declared type (memory_schema) in the checkpoint")
            for path, tensor in _named_tensors(memory):
                expected = model.get(name := path[-1])
                if expected is not None and "row_shares" in path:
                    expected = tensor.new_empty(expected.shape[:1])
                if expected is not None and tensor.shape != expected.shape:
                    in_checkpoint, in_model = _described(tensor), _described(expected)
                    raise ValueError(
                        f"{name} in {memory_of} is {in_checkpoint} in the checkpoint, but {in_model} in this model"
                    )


def _named_tensors(memory: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """Yield every tensor with the names of the dictionaries and the tensor that lead to it."""
    if isinstance(memory, dict | list):
        for name, value in memory.items() if isinstance(memory, dict) else enumerate(memory):
            yield from [((*path, name), value)] if isinstance(value, Tensor) else _named_tensors(value, (*path, name))


def _described(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.")


def check_format(saved: Mapping[str, Any]) -> None:
    """Check that a saved world has the format that this version writes, and a valid fingerprint of its noise key.

    Raises:
        ValueError: If it has another format or an invalid fingerprint.
    """
    key = saved.get("noise_key")
    if key is not None and not (isinstance(key, str) and re.fullmatch("[0-9a-f]{16}", key)):
        raise ValueError("the fingerprint of the noise key in the checkpoint is not 16 hexadecimal digits")
    if saved.get("format") != FORMAT:
        raise ValueError(
            f"the checkpoint has format {saved.get('format', 1)}, but this WorldLM reads format {FORMAT}: "
            "resume with the version that wrote it, or start a new run"
        )


def check_saved(
    saved: Mapping[str, Any], topology: Topology, nodes: Described, seed: int, num_rounds: int | None
) -> Changes:
    """Check whether a run can resume from a saved world.

    Args:
        saved: The saved world.
        topology: The topology of the run.
        nodes: The description of its nodes, as plain values.
        seed: The seed of the run.
        num_rounds: Rounds that the saved world has finished; None if it was saved within a round.

    Returns:
        How the topology has changed since.

    Raises:
        ValueError: If the saved world has another seed or format, if no data node is in both topologies, or if the
            topology has changed within a round.
    """
    check_format(saved)
    if saved["seed"] != seed:
        raise ValueError(
            f"the checkpoint was made with seed {saved['seed']}, but this run has seed {seed}: "
            "data order and noise would change within the run"
        )
    in_run, in_checkpoint = children_by_name(topology), saved["topology"]
    another = (
        f"the checkpoint is of another topology, with nodes {join_names(in_checkpoint)}; "
        f"this run has {join_names(in_run)}"
    )
    if "nodes" not in saved:  # written before topologies could change
        if _sorted_children(in_run) != _sorted_children(in_checkpoint):
            raise ValueError(f"{another}; it does not describe its nodes: first train one round with its topology")
        return Changes()
    changes = compare(saved["nodes"], nodes)
    data_nodes = [name for name, node in nodes.items() if "corpus" in node]
    if changes and not any("corpus" in saved["nodes"].get(name, ()) for name in data_nodes):
        raise ValueError(f"{another}: no node that holds data is in both")
    if changes and num_rounds is None:
        raise ValueError(
            "the checkpoint was saved within a round, in which the topology cannot change "
            f"({'; '.join(changes.lines())}): resume from a checkpoint of the end of a round, or finish this round "
            "with the old topology"
        )
    return changes


def _sorted_children(children: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {name: sorted(names) for name, names in children.items()}


def check_progress(loop: Mapping[str, Any]) -> None:
    """Check that the progress trackers of a saved loop contain only numbers.

    Raises:
        TypeError: Names the first tracker that contains anything else.
    """
    for name, progress in loop.items():
        if name.endswith("progress") and not _is_progress(progress):
            raise TypeError(f"{name} of the loop has the wrong type")


def _is_progress(progress: Any) -> bool:
    """Return whether a value is what Lightning's trackers save: numbers, or dicts of them at any depth."""
    return all(map(_is_progress, progress.values())) if isinstance(progress, dict) else isinstance(progress, int)
