"""Decides whether waiting nodes are kept on the device that trains them or in host memory."""

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
"""Size of a node, in models, most of the time: its weights, AdamW's two moments, and a message."""


def check_nodes_on(nodes_on: NodesOn, paging: bool, fully_shard: bool) -> NodesOn:
    """Check the user's choice, and return it. With FSDP it is `host`, because no device holds a whole node.

    Raises:
        ValueError: If nodes cannot wait on the device.
    """
    if nodes_on == "device" and paging:
        raise ValueError("nodes_on is device, but paging keeps nodes on disk: choose one of them")
    if nodes_on == "device" and fully_shard:
        raise ValueError("nodes_on is device, but with fully_shard no device holds a whole node: choose one of them")
    return "host" if fully_shard else nodes_on


def where_nodes_wait(nodes_on: NodesOn, device: torch.device, num_nodes: int, model_bytes: int) -> torch.device:
    """Return the device in whose memory nodes wait.

    Args:
        nodes_on: The user's choice. `auto` uses the device that trains if it is a GPU and the whole world fills at most
            half of its memory, however many processes share the world.
        device: The device that trains.
        num_nodes: Number of nodes of the world.
        model_bytes: Bytes of one node's weights.
    """
    if nodes_on == "auto" and device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        nodes_on = "device" if 2 * _MODELS * num_nodes * model_bytes <= memory else "host"
    return device if nodes_on == "device" else torch.device("cpu")


def warn_of_little_memory(
    nodes: Collection[Node], model_bytes: int, num_processes: int = 1, num_slices: int = 1
) -> None:
    """Log a warning if the nodes need more host memory than is free; the system might end the run without a message.

    A node needs memory for its weights, and for AdamW's two moments if it trains and keeps them.

    Args:
        nodes: The nodes that one process holds.
        model_bytes: Bytes of one node's weights.
        num_processes: Number of processes of this machine, each of which needs as much.
        num_slices: Number of processes over which a node's moments are sharded.
    """
    moments = 2 * sum(node.keeps_moments for node in nodes) / num_slices
    needed, free = num_processes * (len(nodes) + moments) * model_bytes, free_memory()
    if needed > free:
        message = "the nodes will need %.1f GB, but %.1f GB are free: --trainer.paging.cache_gb 1 keeps them on disk"
        log.warning(message, needed / 1e9, free / 1e9)
