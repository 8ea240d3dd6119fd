"""Gives the nodes, one after the other, the use of the live module and of the trainer's optimizer."""

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
from worldlm.trainer.module_checks import check_configured
from worldlm.trainer.strategy import WorldStrategy


@dataclass(slots=True)
class NodeOptimizer:
    """The optimizer and the schedulers of one node, over the live module's parameters."""

    optimizer: Optimizer
    schedulers: list[Any]

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the optimizer and the schedulers, for a restart."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedulers": [config.scheduler.state_dict() for config in self.schedulers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, in host memory; `onload` moves it to the device.

        Raises:
            ValueError: If the state belongs to other parameters or schedulers, or has another structure.
        """
        try:
            self._load(state)
        except (LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(reason(error)) from error

    def _load(self, state: dict[str, Any]) -> None:
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for group, saved_group in zip(self.optimizer.param_groups, state["optimizer"]["param_groups"], strict=True):
            check_groups(group, saved_group)
        self.optimizer.load_state_dict(shard_optimizer_state(state["optimizer"], parameters))
        check_moments(self.optimizer)
        for config, saved_scheduler in zip(self.schedulers, state["schedulers"], strict=True):
            check_groups(config.scheduler.state_dict(), saved_scheduler)
            config.scheduler.load_state_dict(saved_scheduler)

    def onload(self, device: torch.device) -> None:
        """Move the optimizer's state to a device. Only fused and capturable optimizers count their steps there."""
        moves_step = any(group.get("fused") or group.get("capturable") for group in self.optimizer.param_groups)
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if moves_step or name != "step":
                    state[name] = onload(value, parameter, device)

    def offload(self) -> None:
        """Move the optimizer's state to host memory."""
        for state in self.optimizer.state.values():
            state.update({name: offload(value) for name, value in state.items()})


class NodeSlot:
    """Loads a node's weights and optimizer into the live module and the trainer, and unloads them.

    If nodes wait in the memory of the device that trains them, the live parameters share the node's tensors, and
    nothing is copied. Otherwise, and if a team shards the live module, weights are copied in and out.

    Args:
        module: The live module, whole. If the strategy shards modules, it shards this one here.
        strategy: Lightning's strategy, which holds the optimizer that steps.
        share_memory: Whether to share tensors instead of copying them; by default if nodes wait on the module's device.
        store: Holds the waiting nodes.
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
        can_share = self._device == self._store.device and self._mesh is None
        self._share = can_share if share_memory is None else share_memory

    @torch.no_grad()
    def load_weights(self, name: str, state: NodeState) -> None:
        """Load a node's weights into the live module, for reading."""
        self._store.load(name, to_write=False)
        for key, parameter in self._live.items():
            if self._share:
                parameter.data = state.parameters[key]
            else:
                local_part(parameter).copy_(local_shard(state.parameters[key], parameter))
            parameter.grad = None
        self.name, self._state = name, state

    def load(self, name: str, state: NodeState) -> NodeOptimizer:
        """Load a node's weights and optimizer, for training."""
        self._store.load(name)
        self.load_weights(name, state)
        strategy = self._strategy
        if name not in self._optimizers:
            strategy.setup_optimizers(self.module.trainer)
            check_configured(self.module, strategy.optimizers, strategy.lr_scheduler_configs)
            self._optimizers[name] = NodeOptimizer(strategy.optimizers[0], strategy.lr_scheduler_configs)
            if name in self._pending:
                saved = self._store.load_optimizer(self._pending.pop(name))
                try:
                    self._optimizers[name].load_state_dict(saved)
                except ValueError as error:
                    raise ValueError(
                        f"the optimizer of {name} in the checkpoint does not fit this run: {error}"
                    ) from error
        optimizer = self._optimizers[name]
        if not self._share:
            optimizer.onload(self._device)
        strategy.optimizers, strategy.lr_scheduler_configs = [optimizer.optimizer], optimizer.schedulers
        self._store.prefetch(name, self._pending)
        return optimizer

    @torch.no_grad()
    def save_weights(self) -> None:
        """Copy the live module's weights to their node. Call it after training and before saving."""
        if self._state is None or self._share:
            return
        for key, parameter in self._live.items():
            self._state.parameters[key].copy_(full_tensor_of(parameter))

    def unload(self) -> None:
        """Save the weights, offload the optimizer's state, and drop the gradients; the node then waits."""
        self.save_weights()
        for parameter in self._live.values():
            parameter.grad = None
        optimizer = self._optimizers.get(self.name)
        if optimizer is None:
            return
        if not self._share:
            optimizer.offload()
        if (stored := self._store.store_optimizer(optimizer.state_dict())) is not None:
            self._pending[self.name] = stored
            # the trainer refers to this optimizer until the next node is loaded
            self._optimizers.pop(self.name).optimizer.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the whole optimizer state of every node. All processes of a team call it together."""
        states = {**self._pending, **{name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}}
        return states if self._mesh is None else {name: self._whole(state) for name, state in states.items()}

    def _whole(self, state: dict[str, Any]) -> dict[str, Any]:
        assert self._mesh is not None
        whole: dict[str, Any] = unshard(state, self._mesh, self._device)
        return self._store.store_optimizer(whole) or whole

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. A node's optimizer is built at its next fit.

        Raises:
            KeyError, TypeError: If the state has another structure.
        """
        for optimizer in state.values():
            check_optimizer(optimizer)
        self._pending = {name: self._store.store_optimizer(optimizer) or optimizer for name, optimizer in state.items()}
        self._optimizers = {}
