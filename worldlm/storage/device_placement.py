"""Where there is room for nodes: on the device that trains them, or in the host's memory."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Literal, TypeAlias

import torch

from worldlm.storage.host_memory import free_memory
from worldlm.topology import Node

log = logging.getLogger(__name__)

NodesOn: TypeAlias = Literal["auto", "host", "device"]

_MODELS = 4
"""Models that a node comes to, at most times: its weights, AdamW's two moments, and a message."""


def check_nodes_on(nodes_on: NodesOn, paging: bool, fully_shard: bool) -> NodesOn:
    """Return where nodes wait by a user's choice: with FSDP in the host's memory, as no device holds one whole.

    Raises:
        ValueError: If they are to be on the device, and cannot be.
    """
    if nodes_on == "device" and paging:
        raise ValueError("nodes_on is device, and paging keeps nodes on disk: choose one of them")
    if nodes_on == "device" and fully_shard:
        raise ValueError("nodes_on is device, and with fully_shard no device holds a whole node: choose one of them")
    return "host" if fully_shard else nodes_on


def where_nodes_wait(nodes_on: NodesOn, device: torch.device, num_nodes: int, model_bytes: int) -> torch.device:
    """Return the device in whose memory nodes wait.

    Args:
        nodes_on: The user's choice; `auto` takes the device that trains if it is a GPU of whose memory the whole world,
            however many processes share it, fills no more than half.
        device: The device that trains.
        num_nodes: Nodes of the world.
        model_bytes: Bytes of one node's weights.
    """
    if nodes_on == "auto" and device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        nodes_on = "device" if 2 * _MODELS * num_nodes * model_bytes <= memory else "host"
    return device if nodes_on == "device" else torch.device("cpu")


def warn_of_little_memory(
    nodes: Collection[Node], model_bytes: int, num_processes: int = 1, num_slices: int = 1
) -> None:
    """Say so if nodes will hold more than there is, before a system without memory ends the run without a word.

    Args:
        nodes: Those that one process holds: each its weights, and AdamW's two moments if it trains and keeps them.
        model_bytes: Bytes of one node's weights.
        num_processes: Processes of this machine that hold as much.
        num_slices: Processes among which a node's moments are divided.
    """
    moments = 2 * sum(node.keeps_moments for node in nodes) / num_slices
    needed, free = num_processes * (len(nodes) + moments) * model_bytes, free_memory()
    if needed > free:
        told = "the nodes will hold %.1f GB, and %.1f GB are free: --trainer.paging.cache_gb 1 lets them wait on disk"
        log.warning(told, needed / 1e9, free / 1e9)
