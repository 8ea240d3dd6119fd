"""What the loop asks of the nodes' training data."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader


def check_loaders(loaders: Any, names: Sequence[str], team_size: int = 1) -> dict[str, DataLoader[Any]]:
    """Return one loader for each data node, in the order of the names.

    Args:
        loaders: What `train_dataloader` gave.
        names: The data nodes.
        team_size: Devices that share every batch of a node.

    Raises:
        ValueError: If it is no dict of one loader for each, or a loader cannot go on where a node stopped, or its
            batches cannot be shared alike.
    """
    if not isinstance(loaders, dict) or sorted(loaders) != sorted(names):
        found = ", ".join(loaders) if isinstance(loaders, dict) else type(loaders).__name__
        raise ValueError(
            f"train_dataloader must give a dict with one loader for each of {', '.join(names)}, got {found}"
        )
    for name in names:
        sampler = getattr(loaders[name], "batch_sampler", None)
        if not (hasattr(sampler, "start") and hasattr(sampler, "length")):
            raise ValueError(
                f"train_dataloader, {name}: a node goes on where it stopped, so its batch_sampler needs `start` and "
                "`length`, as worldlm.data.BlockBatchSampler has"
            )
        if (size := getattr(sampler, "batch_size", team_size)) % team_size:
            raise ValueError(
                f"{name}: {team_size} devices cannot share its batches of {size} alike; see devices_per_node"
            )
    return {name: loaders[name] for name in names}


def num_tokens(loader: DataLoader[Any], num_batches: int) -> int:
    """Return the tokens in so many batches of a node, on average where batches are drawn by chance."""
    sampler: Any = loader.batch_sampler
    return num_batches * int(sampler.batch_size) * int(getattr(loader.dataset, "seq_len", 1))
