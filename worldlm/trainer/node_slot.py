"""Lends the one live module and the trainer's one optimizer slot to one node after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import Strategy
from torch import Tensor
from torch.optim import Optimizer

from worldlm.distributed.fsdp import cut, cut_state, gathered, here, live, shape_of, waiting, whole_nest
from worldlm.federation.state import NodeState
from worldlm.federation.type_checks import matches_type
from worldlm.storage.node_store import NodeStore
from worldlm.topology.errors import reason
from worldlm.trainer.strategy import WorldStrategy

_MOMENTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"}


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
            _check_like(group, one)
        self.optimizer.load_state_dict(cut_state(state["optimizer"], parameters))
        _check_moments(self.optimizer)
        for config, one in zip(self.schedulers, state["schedulers"], strict=True):
            _check_like(config.scheduler.state_dict(), one)
            config.scheduler.load_state_dict(one)

    def move(self, device: torch.device) -> None:
        """Move the optimizer's state to a device; steps are counted there only by optimizers that say so."""
        counts = any(group.get("fused") or group.get("capturable") for group in self.optimizer.param_groups)
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if counts or name != "step":
                    state[name] = live(value, parameter, device)

    def wait(self) -> None:
        """Move the optimizer's state to host memory."""
        for state in self.optimizer.state.values():
            state.update({name: waiting(value) for name, value in state.items()})


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
        self._mesh = strategy.divide(module) if isinstance(strategy, WorldStrategy) else None
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
    def put_weights(self, name: str, state: NodeState) -> None:
        """Let the live module be this node's model, for reading."""
        self._store.bring(name, to_write=False)
        for key, parameter in self._live.items():
            if self._share:
                parameter.data = state.parameters[key]
            else:
                here(parameter).copy_(cut(state.parameters[key], parameter))
            parameter.grad = None
        self.name, self._state = name, state

    def put(self, name: str, state: NodeState) -> NodeOptimizer:
        """Let the live module be this node's model, with its optimizer, for training."""
        self._store.bring(name)
        self.put_weights(name, state)
        strategy = self._strategy
        if name not in self._optimizers:
            strategy.setup_optimizers(self.module.trainer)
            self._optimizers[name] = NodeOptimizer(strategy.optimizers[0], strategy.lr_scheduler_configs)
            if name in self._pending:
                saved = self._store.fetch_optimizer(self._pending.pop(name))
                try:
                    self._optimizers[name].load_state_dict(saved)
                except ValueError as error:
                    raise ValueError(f"the optimizer of {name} in the checkpoint is not this run's: {error}") from error
        own = self._optimizers[name]
        if not self._share:
            own.move(self._device)
        strategy.optimizers, strategy.lr_scheduler_configs = [own.optimizer], own.schedulers
        self._store.look_ahead(name, self._pending)
        return own

    @torch.no_grad()
    def take_back(self) -> None:
        """Bring what the live module learnt home to its node; call it after training and before saving."""
        if self._state is None or self._share:
            return
        for key, parameter in self._live.items():
            self._state.parameters[key].copy_(gathered(parameter))

    def rest(self) -> None:
        """Take back the weights, and the optimizer's state too: the node waits. Its last gradients are dropped."""
        self.take_back()
        for parameter in self._live.values():
            parameter.grad = None
        own = self._optimizers.get(self.name)
        if own is None:
            return
        if not self._share:
            own.wait()
        if (put := self._store.put_optimizer(own.state_dict())) is not None:
            self._pending[self.name] = put
            self._optimizers.pop(self.name).optimizer.state.clear()  # the trainer holds it until the next node's

    def state_dict(self) -> dict[str, Any]:
        """Return every node's optimizer state, whole; all of a team call this."""
        found = {**self._pending, **{name: own.state_dict() for name, own in self._optimizers.items()}}
        return found if self._mesh is None else {name: self._whole(one) for name, one in found.items()}

    def _whole(self, state: dict[str, Any]) -> dict[str, Any]:
        assert self._mesh is not None
        whole: dict[str, Any] = whole_nest(state, self._mesh, self._device)
        return self._store.put_optimizer(whole) or whole

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`; a node's optimizer is built at its next fit.

        Raises:
            KeyError, TypeError: If it is not built like one.
        """
        for one in state.values():
            _check_saved(one)
        self._pending = {name: self._store.put_optimizer(one) or one for name, one in state.items()}
        self._optimizers = {}


def _check_like(own: dict[str, Any], saved: dict[str, Any]) -> None:
    for name, value in own.items():
        if name != "params" and not _is_like(saved.get(name, value), value):
            raise ValueError(f"{name} is {str(saved[name])[:100]}, and here {str(value)[:100]}")


def _is_like(one: Any, own: Any) -> bool:
    """Whether one can stand for the other: a switch for a switch, a number for a number, alone or in a list."""
    if isinstance(own, bool):
        return one is None or isinstance(one, bool)
    if isinstance(own, int | float):
        return isinstance(one, int | float) or (isinstance(one, Tensor) and one.numel() == 1)
    if isinstance(own, list | tuple):
        return isinstance(one, list | tuple) and all(map(_is_like, one, own)) and len(one) == len(own)
    return True


def _check_moments(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        states = {one: optimizer.state[one] for one in group["params"] if one in optimizer.state}
        if len({frozenset(own) for own in states.values()}) > 1:
            raise ValueError("not the same is kept of all weights")
        for parameter, own in states.items():
            for name in sorted(_MOMENTS & own.keys()):
                if (shape := shape_of(own[name])) != parameter.shape:
                    raise ValueError(f"{name} of shape {[*shape]} for weights of {[*parameter.shape]}")


def _check_saved(state: dict[str, Any]) -> None:
    optimizer = state["optimizer"]
    groups, schedulers = optimizer["param_groups"], state["schedulers"]
    if not (
        matches_type(groups, list[dict[str, Any]]) and all(matches_type(one["params"], list[int]) for one in groups)
    ):
        raise TypeError("the groups of an optimizer are none")
    if not (
        matches_type(optimizer["state"], dict[int, dict[str, Any]]) and matches_type(schedulers, list[dict[str, Any]])
    ):
        raise TypeError("the states of an optimizer and of its schedulers are none")
