"""Lends the one live module and the trainer's one optimizer slot to one node after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import Strategy
from torch.optim import Optimizer

from worldlm.checkpoint.validate_optimizer import check_groups, check_moments, check_optimizer
from worldlm.distributed.fsdp import (
    full_tensor_of,
    local_part,
    local_shard,
    offload,
    onload,
    shard_optimizer_state,
    unshard,
)
from worldlm.federation.state import NodeState
from worldlm.storage.node_store import NodeStore
from worldlm.topology.errors import reason
from worldlm.trainer.strategy import WorldStrategy


@dataclass(slots=True)
class NodeOptimizer:
    """A node's own optimizer and schedulers, over the live module's parameters."""

    optimizer: Optimizer
    schedulers: list[Any]

    def state_dict(self) -> dict[str, Any]:
        """Return what a restart needs."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedulers": [config.scheduler.state_dict() for config in self.schedulers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`, for `move` to bring to the device.

        Raises:
            ValueError: If it is for other parameters or schedulers, or not built as `state_dict` builds it.
        """
        try:
            self._load(state)
        except (LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(reason(error)) from error

    def _load(self, state: dict[str, Any]) -> None:
        parameters = [one for group in self.optimizer.param_groups for one in group["params"]]
        for group, one in zip(self.optimizer.param_groups, state["optimizer"]["param_groups"], strict=True):
            check_groups(group, one)
        self.optimizer.load_state_dict(shard_optimizer_state(state["optimizer"], parameters))
        check_moments(self.optimizer)
        for config, one in zip(self.schedulers, state["schedulers"], strict=True):
            check_groups(config.scheduler.state_dict(), one)
            config.scheduler.load_state_dict(one)

    def onload(self, device: torch.device) -> None:
        """Move the optimizer's state to a device; steps are counted there only by optimizers that say so."""
        counts = any(group.get("fused") or group.get("capturable") for group in self.optimizer.param_groups)
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if counts or name != "step":
                    state[name] = onload(value, parameter, device)

    def offload(self) -> None:
        """Move the optimizer's state to host memory."""
        for state in self.optimizer.state.values():
            state.update({name: offload(value) for name, value in state.items()})


class NodeSlot:
    """Puts a node's weights and optimizer in place, and takes them back.

    Where nodes wait in the memory of the device that trains them, the live parameters point at the node's own: no
    tensor is copied. Else nodes are copied in and out, also where a team has divided the live module.

    Args:
        module: The one live module, whole; here the strategy divides it, if it is to be divided.
        strategy: Lightning's strategy, which owns the optimizer slot.
        share_memory: Whether to point instead of copying; by default where nodes wait on the module's device.
        store: Where the nodes that wait are.
    """

    def __init__(
        self,
        module: LightningModule,
        strategy: Strategy,
        share_memory: bool | None = None,
        store: NodeStore | None = None,
    ) -> None:
        self._mesh = strategy.shard_module(module) if isinstance(strategy, WorldStrategy) else None
        self.module = module
        self._strategy = strategy
        self._live = dict(module.named_parameters())
        self._device = strategy.root_device
        self.name = ""
        self._state: NodeState | None = None
        self._optimizers: dict[str, NodeOptimizer] = {}
        self._pending: dict[str, dict[str, Any]] = {}
        self._store = store or NodeStore()
        whole_here = self._device == self._store.device and self._mesh is None
        self._share = whole_here if share_memory is None else share_memory

    @torch.no_grad()
    def load_weights(self, name: str, state: NodeState) -> None:
        """Let the live module be this node's model, for reading."""
        self._store.load(name, to_write=False)
        for key, parameter in self._live.items():
            if self._share:
                parameter.data = state.parameters[key]
            else:
                local_part(parameter).copy_(local_shard(state.parameters[key], parameter))
            parameter.grad = None
        self.name, self._state = name, state

    def load(self, name: str, state: NodeState) -> NodeOptimizer:
        """Let the live module be this node's model, with its optimizer, for training."""
        self._store.load(name)
        self.load_weights(name, state)
        strategy = self._strategy
        if name not in self._optimizers:
            strategy.setup_optimizers(self.module.trainer)
            self._optimizers[name] = NodeOptimizer(strategy.optimizers[0], strategy.lr_scheduler_configs)
            if name in self._pending:
                saved = self._store.load_optimizer(self._pending.pop(name))
                try:
                    self._optimizers[name].load_state_dict(saved)
                except ValueError as error:
                    raise ValueError(f"the optimizer of {name} in the checkpoint is not this run's: {error}") from error
        own = self._optimizers[name]
        if not self._share:
            own.onload(self._device)
        strategy.optimizers, strategy.lr_scheduler_configs = [own.optimizer], own.schedulers
        self._store.prefetch(name, self._pending)
        return own

    @torch.no_grad()
    def save_weights(self) -> None:
        """Bring what the live module learnt home to its node; call it after training and before saving."""
        if self._state is None or self._share:
            return
        for key, parameter in self._live.items():
            self._state.parameters[key].copy_(full_tensor_of(parameter))

    def unload(self) -> None:
        """Take back the weights, and the optimizer's state too: the node waits. Its last gradients are dropped."""
        self.save_weights()
        for parameter in self._live.values():
            parameter.grad = None
        own = self._optimizers.get(self.name)
        if own is None:
            return
        if not self._share:
            own.offload()
        if (put := self._store.store_optimizer(own.state_dict())) is not None:
            self._pending[self.name] = put
            self._optimizers.pop(self.name).optimizer.state.clear()  # the trainer holds it until the next node's

    def state_dict(self) -> dict[str, Any]:
        """Return every node's optimizer state, whole; all of a team call this."""
        found = {**self._pending, **{name: own.state_dict() for name, own in self._optimizers.items()}}
        return found if self._mesh is None else {name: self._whole(one) for name, one in found.items()}

    def _whole(self, state: dict[str, Any]) -> dict[str, Any]:
        assert self._mesh is not None
        whole: dict[str, Any] = unshard(state, self._mesh, self._device)
        return self._store.store_optimizer(whole) or whole

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`; a node's optimizer is built at its next fit.

        Raises:
            KeyError, TypeError: If it is not built like one.
        """
        for one in state.values():
            check_optimizer(one)
        self._pending = {name: self._store.store_optimizer(one) or one for name, one in state.items()}
        self._optimizers = {}
