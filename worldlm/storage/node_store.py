"""Where the nodes' tensors are while a node waits: in memory, or on disk, a bounded number of nodes in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from worldlm.federation.messages import (
    Upload,
)
from worldlm.federation.parameters import Tensors
from worldlm.federation.state import NodeState
from worldlm.storage.pages import replaced

_HOST = torch.device("cpu")


class NodeStore:
    """All nodes in memory: that of the host, or that of the device which trains them.

    Counters, scores and all else that is no large tensor are in memory here and in every other store. Reading a
    tensor is possible at any time, writing into a node's weights after `bring` alone.

    Args:
        device: In whose memory.
    """

    def __init__(self, device: torch.device = _HOST) -> None:
        self.device = device

    def to_storage(self, nest: Any) -> Any:
        """Return a nest of plain containers and tensors with its tensors where nodes wait, copied if they must be."""
        return replaced(nest, lambda one: one.to(self.device))

    def initial_weights(self, weights: Tensors) -> Tensors:
        """Return weights for a node to start from, which it may write into once it was brought."""
        return {name: tensor.detach().to(self.device, copy=True) for name, tensor in weights.items()}

    def register(self, states: dict[str, NodeState]) -> None:
        """Take care of the nodes of a world."""
        if self.device == _HOST:
            return
        for name, state in states.items():
            memory, state.memory = state.memory, {}
            held = states[name] = NodeState.from_state_dict(self.to_storage(state.state_dict()))
            # an outer optimizer counts its steps in a single number, and most refuse one that is on a device
            held.memory = replaced(memory, lambda one: one.to(self.device) if one.dim() else one)

    def load(self, name: str, *, to_write: bool = True) -> None:
        """Have a node's weights in memory: to be trained or merged into, or just to be read many times."""

    def keep_upload(self, name: str, upload: Upload) -> Upload:
        """Return an upload as it waits at its parent; the sender has nothing more to do in this sub-round."""
        return upload

    def store_optimizer(self, state: dict[str, Any]) -> dict[str, Any] | None:
        """Return the state of a node's inner optimizer as it waits; None if the optimizer itself can wait."""
        return None

    def load_optimizer(self, state: dict[str, Any]) -> dict[str, Any]:
        """Undo `store_optimizer`."""
        return state

    def prefetch(self, name: str, optimizers: Mapping[str, dict[str, Any]]) -> None:
        """Prepare, while a node trains, for the one that trains next."""
