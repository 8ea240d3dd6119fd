"""Storage of the tensors of waiting nodes. This store keeps all of them in memory; `paged_store` keeps them on disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from worldlm.federation.messages import Upload
from worldlm.federation.parameters import Tensors
from worldlm.federation.state import NodeState
from worldlm.storage.pages import map_tensors

_HOST = torch.device("cpu")


class NodeStore:
    """Keeps all nodes in memory: host memory, or the memory of the device that trains them.

    In every store, everything but large tensors stays in memory: counters, scores and the like. Tensors can be read at
    any time. A node's weights can be written into only after `load`.

    Args:
        device: The device in whose memory the nodes wait.
    """

    def __init__(self, device: torch.device = _HOST) -> None:
        self.device = device

    def to_storage(self, nest: Any) -> Any:
        """Return nested containers with their tensors on the device where nodes wait, copied if necessary."""
        return map_tensors(nest, lambda tensor: tensor.to(self.device))

    def initial_weights(self, weights: Tensors) -> Tensors:
        """Return a node's copy of the weights that it starts from. It can write into them after `load`."""
        return {name: tensor.detach().to(self.device, copy=True) for name, tensor in weights.items()}

    def register(self, states: dict[str, NodeState]) -> None:
        """Start to manage the nodes of a world: move their tensors to where they wait."""
        if self.device == _HOST:
            return
        for name, state in states.items():
            memory, state.memory = state.memory, {}
            moved = states[name] = NodeState.from_state_dict(self.to_storage(state.state_dict()))
            # an outer optimizer counts its steps in a scalar, which most optimizers accept only on the host
            moved.memory = map_tensors(memory, lambda tensor: tensor.to(self.device) if tensor.dim() else tensor)

    def load(self, name: str, *, to_write: bool = True) -> None:
        """Load a node's weights into memory, to train it, to merge into it, or to read it many times.

        Args:
            name: The node.
            to_write: Whether its weights may be written into.
        """

    def keep_upload(self, name: str, upload: Upload) -> Upload:
        """Return an upload in the form in which it waits at the parent. Its sender is done in this sub-round."""
        return upload

    def store_optimizer(self, state: dict[str, Any]) -> dict[str, Any] | None:
        """Return the state of a node's inner optimizer in the form in which it waits.

        Returns:
            None if the optimizer itself can wait in memory.
        """
        return None

    def load_optimizer(self, state: dict[str, Any]) -> dict[str, Any]:
        """Undo `store_optimizer`."""
        return state

    def prefetch(self, name: str, optimizers: Mapping[str, dict[str, Any]]) -> None:
        """Prefetch, while a node trains, the node that trains next.

        Args:
            name: The node that trains.
            optimizers: Stored optimizer states of waiting nodes, by name.
        """
