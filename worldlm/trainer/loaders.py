"""Loaders of the nodes' training data, and what the fit loop requires of them."""

from collections.abc import Sequence
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.trainer.connectors.data_connector import (
    _DataLoaderSource,
    _process_dataloader,
    _request_dataloader,
)
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from torch.utils.data import DataLoader

from worldlm.topology.errors import join_names


def request_loaders(
    trainer: pl.Trainer, source: _DataLoaderSource, names: Sequence[str], team_size: int = 1
) -> dict[str, DataLoader[Any]]:
    """Request the training loaders, check them, and prepare them as Lightning does.

    Args:
        trainer: Lightning's trainer.
        source: The module or data module that has `train_dataloader`.
        names: The data nodes.
        team_size: Devices that share every batch of a node.

    Returns:
        One loader for each data node, in the order of the names.

    Raises:
        ValueError: As `check_loaders`.
    """
    loaders = check_loaders(_request_dataloader(source), names, team_size)
    stage = (trainer, TrainerFn.FITTING, RunningStage.TRAINING)
    return {name: cast(DataLoader[Any], _process_dataloader(*stage, loader)) for name, loader in loaders.items()}


def request_val_loaders(trainer: pl.Trainer, val_loop: Any) -> dict[str, DataLoader[Any]]:
    """Return every data node's validation loader, by name; empty if there is no validation.

    Args:
        trainer: Lightning's trainer, in training.
        val_loop: Its validation loop, which requests the loaders once and keeps them.
    """
    if not trainer.enable_validation:
        return {}
    if val_loop._combined_loader is None:
        trainer.validating = True
        val_loop.setup_data()
        trainer.training = True
    loaders: dict[str, DataLoader[Any]] = val_loop._combined_loader.iterables
    return loaders


def check_loaders(loaders: Any, names: Sequence[str], team_size: int = 1) -> dict[str, DataLoader[Any]]:
    """Return one loader for each data node, in the order of the names.

    Args:
        loaders: What `train_dataloader` returned.
        names: The data nodes.
        team_size: Devices that share every batch of a node.

    Raises:
        ValueError: If `loaders` is not a dict with one loader for each node, a loader cannot continue where a node
            stopped, or its batches cannot be divided evenly among the devices.
    """
    if not isinstance(loaders, dict) or sorted(loaders) != sorted(names):
        received = join_names(loaders) if isinstance(loaders, dict) else type(loaders).__name__
        raise ValueError(
            f"train_dataloader must return a dict with one loader for each of {join_names(names)}, got {received}"
        )
    for name in names:
        sampler = getattr(loaders[name], "batch_sampler", None)
        if not (hasattr(sampler, "start") and hasattr(sampler, "length")):
            raise ValueError(
                f"train_dataloader, {name}: a node continues where it stopped, so its batch_sampler needs `start` and "
                "`length`, as worldlm.data.BlockBatchSampler has"
            )
        if (size := getattr(sampler, "batch_size", team_size)) % team_size:
            raise ValueError(
                f"{name}: its batches of {size} cannot be divided evenly among {team_size} devices; "
                "see devices_per_node"
            )
    return {name: loaders[name] for name in names}


def num_tokens(loader: DataLoader[Any], num_batches: int) -> int:
    """Return the tokens in a number of batches of a node; an average where batches are drawn at random."""
    sampler: Any = loader.batch_sampler
    return num_batches * int(sampler.batch_size) * int(getattr(loader.dataset, "seq_len", 1))
