"""Loaders of the nodes' data, and what the fit loop requires of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.trainer.connectors.data_connector import (
    _DataLoaderSource,
    _process_dataloader,
    _request_dataloader,
)
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader

from worldlm.data.node_loaders import PassSampler, Stream, node_loader
from worldlm.topology.errors import join_names, suggest


def request_loaders(
    trainer: pl.Trainer, source: _DataLoaderSource, names: Sequence[str], seed: int, team_size: int = 1
) -> dict[str, DataLoader[Any]]:
    """Request the training loaders, check them, and prepare them as Lightning does.

    Args:
        trainer: Lightning's trainer.
        source: The module or data module that has `train_dataloader`.
        names: The data nodes.
        seed: The run's seed.
        team_size: Devices that share every batch of a node.

    Returns:
        One loader for each data node, in the order of the names; its `batch_sampler` has `start` and `length`.

    Raises:
        ValueError: As `by_node` and `worldlm.data.node_loaders.node_loader`, or if the batches of a node cannot be
            divided evenly among the devices.
    """
    loaders = by_node(_request_dataloader(source), names, "training")
    prepared = {name: node_loader(loader, name, seed) for name, loader in loaders.items()}
    for name, loader in prepared.items():
        if (size := getattr(loader.batch_sampler, "batch_size", team_size)) % team_size:
            raise ValueError(
                f"{name}: its batches of {size} cannot be divided evenly among {team_size} devices; "
                "see devices_per_node"
            )
        if team_size > 1 and isinstance(loader.batch_sampler, PassSampler) and loader.batch_sampler.has_rest:
            raise ValueError(
                f"{name}: the last batch of a pass is smaller, and cannot be divided evenly among {team_size} devices: "
                "give its DataLoader drop_last=True"
            )
    stage = (trainer, TrainerFn.FITTING, RunningStage.TRAINING)
    return {name: cast(DataLoader[Any], _process_dataloader(*stage, loader)) for name, loader in prepared.items()}


def request_val_loaders(trainer: pl.Trainer, val_loop: Any, names: Sequence[str]) -> dict[str, DataLoader[Any]]:
    """Return every data node's validation loader, by name; empty if there is no validation.

    Args:
        trainer: Lightning's trainer, in training.
        val_loop: Its validation loop, which requests the loaders once and keeps them.
        names: The data nodes. A single loader is used for all of them.

    Raises:
        ValueError: As `by_node`.
    """
    if not trainer.enable_validation:
        return {}
    if val_loop._combined_loader is None:
        trainer.validating = True
        val_loop.setup_data()
        trainer.training = True
        _use_for_all(val_loop, names)
    loaders: dict[str, DataLoader[Any]] = val_loop._combined_loader.iterables
    return loaders


def _use_for_all(val_loop: Any, names: Sequence[str]) -> None:
    """Make a single validation loader that of every node, and check that each node has one."""
    loaders = val_loop._combined_loader.iterables
    if not isinstance(loaders, Mapping | Sequence):
        loaders = dict.fromkeys(names, loaders)
        val_loop._combined_loader = CombinedLoader(loaders, "sequential")
        val_loop._max_batches *= len(names)
    by_node(loaders, names, "validation")


def by_node(loaders: Any, names: Sequence[str], purpose: str) -> dict[str, Any]:
    """Return one loader for each data node, in the order of the names.

    Args:
        loaders: A dict with a loader for each node; for a single node, its loader is enough.
        names: The data nodes.
        purpose: What the loaders are for, such as "training".

    Raises:
        ValueError: If a node has no loader, or a loader no node.
    """
    if not isinstance(loaders, Mapping | Sequence) and len(names) == 1:
        loaders = {names[0]: loaders}
    if isinstance(loaders, Mapping) and sorted(map(str, loaders)) == sorted(names):
        return {name: loaders[name] for name in names}
    received, hint = type(loaders).__name__, ""
    if isinstance(loaders, Mapping):
        received = join_names(map(str, loaders)) or "none"
        hint = "".join(suggest(str(name), names) for name in loaders if name not in names)[:200]
    raise ValueError(
        f"the {purpose} loaders must be a dict with one loader for each of {join_names(names)}, got {received}{hint}"
    )


def num_tokens(loader: DataLoader[Any], num_batches: int) -> int:
    """Return the tokens in a number of batches of a node; an average where batches are drawn at random.

    Of conversations, they are the tokens to predict, on average.
    """
    sampler: Any = loader.batch_sampler
    return round(num_batches * int(sampler.batch_size) * tokens_per_example(loader.dataset))


def tokens_per_example(dataset: Any) -> float:
    """Return the mean number of tokens to predict in an example of a data set.

    It is `num_targets` divided by the number of examples if the data set has both, else its `seq_len`, else 1: examples
    are then counted.
    """
    if (num_targets := getattr(dataset, "num_targets", None)) is not None:
        return float(num_targets / len(dataset))
    return int(getattr(dataset, "seq_len", 1))


def states_of(loaders: Mapping[str, DataLoader[Any]]) -> dict[str, Any]:
    """Return the state of the loaders that have one, by node; see `worldlm.data.node_loaders.Stream`."""
    streams = {name: loader.dataset for name, loader in loaders.items() if isinstance(loader.dataset, Stream)}
    return {name: state for name, stream in streams.items() if (state := stream.state_dict())}


def load_states(loaders: Mapping[str, DataLoader[Any]], states: Mapping[str, Any]) -> None:
    """Restore what `states_of` returned, for the nodes that still have such a loader."""
    for name, state in states.items():
        if name in loaders and isinstance(stream := loaders[name].dataset, Stream):
            stream.load_state_dict(state)
