"""Validating checkpoints: whether their content is what WorldLM writes, and whether this run can resume from it."""

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

FORMAT = 3
"""Counted up whenever the content of a checkpoint changes its meaning."""


def children_by_name(topology: Topology) -> dict[str, list[str]]:
    """Return every node's children by name."""
    return {name: [child.name for child in node.children] for name, node in topology.nodes.items()}


def check_weights(whose: str, saved: Tensors, model: Tensors) -> None:
    """Check that weights of a saved world are for a model.

    Args:
        whose: "of sea": said of them if they are not.
        saved: The weights, by name.
        model: The model's; only their names, shapes and types matter.

    Raises:
        ValueError: Names the first that is not.
    """
    for name in model | saved:
        there, here = _shown(saved.get(name)), _shown(model.get(name))
        if there != here:
            raise ValueError(f"the weights {name} {whose} are {there} in the checkpoint, and {here} in this model")


def check_messages(states: Mapping[str, NodeState], model: Mapping[Part, Tensors], parts: frozenset[Part]) -> None:
    """Check that what waits at the nodes of a saved world to be merged or sent on is for a model.

    Args:
        states: The world's nodes, by name.
        model: The model's weights, by part; only their names and shapes matter.
        parts: Parts of which all messages must have the weights.

    Raises:
        ValueError: Names the first node at which something is not.
    """
    for node, state in states.items():
        messages: list[Download | Upload] = [*state.uploads.values()]
        messages += [] if state.download is None else [state.download]
        if absent := [part for part in PARTS if part in parts and any(part not in one.parts for one in messages)]:
            raise ValueError(
                f"what waits at {node} in the checkpoint is without {', '.join(absent)}, which travel here"
            )
        pairs = [(tensors, model[part]) for one in messages for part, tensors in one.parts.items()]
        residuals = [
            *state.inbox,
            *_residuals(state.memory),
            *(one for message in messages for one in message.residuals),
        ]
        for residual in residuals:
            pairs += [(residual.keys, model["keys"]), (residual.values, model["values"])]
        for found, expected in pairs:
            for wrong in misfits(found, expected):
                raise ValueError(f"what waits at {node} in the checkpoint is not for this model: {wrong}")


def _residuals(memory: Any) -> Iterator[Residual]:
    if matches_type(memory, SavedResidual):
        yield residual_from_state(memory)
    elif isinstance(memory, dict | list):
        for one in memory.values() if isinstance(memory, dict) else memory:
            yield from _residuals(one)


def check_memories(states: Mapping[str, NodeState], callbacks: Iterable[RoundCallback], model: Tensors) -> None:
    """Check that what pieces of a method keep at the nodes of a saved world is as they declare it, and for a model.

    Args:
        states: The world's nodes, by name.
        callbacks: The pieces.
        model: The model's weights, by name; a tensor that is kept under the name of one must have its shape.

    Raises:
        ValueError: Names the first node and piece of which that is not so.
    """
    for callback in callbacks:
        for node, state in states.items():
            whose = f"what {type(callback).__name__} keeps at {node}"
            memory = state.memory.get(callback.state_key, {})
            if not matches_type(memory, callback.memory_schema):
                raise ValueError(f"{whose} is not what it would have written into the checkpoint")
            for name, tensor in _named_tensors(memory):
                if name in model and tensor.shape != model[name].shape:
                    there, here = _shown(tensor), _shown(model[name])
                    raise ValueError(f"{whose} of {name} is {there} in the checkpoint, and {here} in this model")


def _named_tensors(memory: Any) -> Iterator[tuple[Any, Tensor]]:
    if isinstance(memory, dict | list):
        for name, one in memory.items() if isinstance(memory, dict) else enumerate(memory):
            yield from [(name, one)] if isinstance(one, Tensor) else _named_tensors(one)


def _shown(one: Tensor | None) -> str:
    return "missing" if one is None else f"{one.dtype} {list(one.shape)}".removeprefix("torch.")


def check_format(saved: Mapping[str, Any]) -> None:
    """Check that a saved world is of the format that this version writes.

    Raises:
        ValueError: If it is not.
    """
    if saved.get("format") != FORMAT:
        raise ValueError(
            f"the checkpoint is of format {saved.get('format', 1)}, this WorldLM reads format {FORMAT}: "
            "go on with the version that wrote it, or start anew"
        )


def check_saved(
    saved: Mapping[str, Any], topology: Topology, nodes: Described, seed: int, num_rounds: int | None
) -> Changes:
    """Check a saved world against the run that is to go on with it.

    Args:
        saved: The world.
        topology: The run's.
        nodes: The same, described.
        seed: The run's.
        num_rounds: Rounds that the saved world has finished; None if it was saved within one.

    Returns:
        What has changed in the topology since.

    Raises:
        ValueError: If it is of another seed or version, has no node with data in common with the topology, or was
            saved within a round of another one.
    """
    check_format(saved)
    if saved["seed"] != seed:
        raise ValueError(
            f"the checkpoint was made with seed {saved['seed']}, this run has seed {seed}: "
            "its data order and noise would change half way"
        )
    here, there = children_by_name(topology), saved["topology"]
    another = f"the checkpoint is of another topology, with nodes {', '.join(there)}; this run has {', '.join(here)}"
    if "nodes" not in saved:  # written before the topology could change
        if {name: sorted(below) for name, below in here.items()} != {n: sorted(below) for n, below in there.items()}:
            raise ValueError(f"{another}; it does not say what its nodes were: go on for a round with them first")
        return Changes()
    changes = compare(saved["nodes"], nodes)
    if changes and not any("corpus" in saved["nodes"].get(name, ()) for name, one in nodes.items() if "corpus" in one):
        raise ValueError(f"{another}: no node that holds data is in both")
    if changes and num_rounds is None:
        told = "; ".join(changes.lines())
        raise ValueError(
            f"the checkpoint was saved within a round, in which the topology cannot change ({told}): "
            "take one of the end of a round, or finish this round with the topology as it was"
        )
    return changes


def check_progress(loop: Mapping[str, Any]) -> None:
    """Check that the progress trackers of a saved loop hold numbers only.

    Raises:
        TypeError: Names the one that does not.
    """
    for name, progress in loop.items():
        if name.endswith("progress") and not _is_progress(progress):
            raise TypeError(f"{name} of the loop does not count")


def _is_progress(progress: Any) -> bool:
    """Return whether a value is what Lightning's trackers save: numbers, within dicts at any depth."""
    return all(map(_is_progress, progress.values())) if isinstance(progress, dict) else isinstance(progress, int)
