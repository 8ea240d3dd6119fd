"""Weighted averaging of chosen parts, with any outer optimizer."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from worldlm.callbacks.scalars import log_scalars
from worldlm.federation.averaging import outer_step_, weighted_mean
from worldlm.federation.messages import Download, Upload
from worldlm.federation.parameters import PARTS, Part, Tensors, copy_, norm, subtract
from worldlm.loop import Context, FederationCallback, WorldTrainer
from worldlm.topology import Node


class Averaging(FederationCallback):
    """Averages parts of the model over a federation's participants, and steps an outer optimizer with the result.

    On download a node overwrites these parts with its parent's. With SGD(lr=1), the default, and all parts, this is
    FedAvg (McMahan et al., arXiv 1602.05629); on a tree HierFAVG (Liu et al., arXiv 1905.06641); with the backbone
    alone FedPer (Arivazhagan et al., arXiv 1912.00818); with Nesterov SGD(0.7, 0.9) DiLoCo (arXiv 2311.08105).

    Args:
        parts: Parts to average: backbone, keys, values.
        weights: `num_tokens` weighs a participant by the tokens it trained on, `uniform` all alike. A node's
            `weight` in the topology replaces its number of tokens.
        optimizer: Name of a class of `torch.optim`; a federation's `outer_optimizer` in the topology wins.
        arguments: Its keyword arguments.

    Raises:
        ValueError: If a part or an optimizer does not exist, or the optimizer refuses its arguments.
    """

    honours = frozenset({"outer_optimizer", "weight"})

    def __init__(
        self,
        parts: Sequence[Part] = ("backbone",),
        weights: Literal["num_tokens", "uniform"] = "num_tokens",
        optimizer: str = "SGD",
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        if not parts or set(parts) - set(PARTS):
            raise ValueError(f"parts must be some of {', '.join(PARTS)}, got {list(parts)}")
        if weights not in ("num_tokens", "uniform"):
            raise ValueError(f"weights must be num_tokens or uniform, got {weights!r}")
        self.parts = frozenset(parts)
        self.weights = weights
        self.default = (optimizer, dict(arguments or {"lr": 1.0}))
        self._states: dict[str, Any] = {}
        find_optimizer(*self.default)

    @property
    def state_key(self) -> str:
        return self._generate_state_key(parts=sorted(self.parts))

    def setup(self, trainer: WorldTrainer, pl_module: Any, stage: str) -> None:  # type: ignore[override]
        for node in trainer.topology.nodes.values():
            try:
                find_optimizer(*self._optimizer(node))
            except ValueError as error:
                raise ValueError(f"{node.source}: outer_optimizer of {node.name}: {error}") from error

    def _optimizer(self, node: Node) -> tuple[str, dict[str, Any]]:
        own = node.settings.outer_optimizer
        return (own.name, dict(own.arguments)) if own else self.default

    def on_receive(self, trainer: WorldTrainer, context: Context, download: Download) -> None:
        for part in self.parts:
            copy_(context.state.parameters, download.parts[part])

    def on_aggregate(self, trainer: WorldTrainer, context: Context, uploads: list[Upload]) -> None:
        name, nodes = context.node.name, context.world.topology.nodes
        models = [self._tensors(upload) for upload in uploads]
        weights = [self._weight(nodes[upload.node], upload) for upload in uploads]
        mean = weighted_mean(models, weights)
        optimizer, arguments = self._optimizer(context.node)
        length = norm(subtract(mean, context.state.parameters))
        self._states[name] = outer_step_(
            context.state.parameters,
            mean,
            find_optimizer(optimizer, arguments),
            arguments,
            self._states.get(name),
        )
        log_scalars(trainer, {f"{name}/pseudo_gradient_norm": length}, context.round)

    def _tensors(self, upload: Upload) -> Tensors:
        return {name: tensor for part in PARTS if part in self.parts for name, tensor in upload.parts[part].items()}

    def _weight(self, node: Node, upload: Upload) -> float:
        if node.weight is not None:
            return node.weight
        return upload.num_tokens if self.weights == "num_tokens" else 1.0

    def state_dict(self) -> dict[str, Any]:
        return {"states": dict(self._states)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._states = dict(state_dict["states"])


def find_optimizer(name: str, arguments: Mapping[str, Any]) -> type[Optimizer]:
    """Return a class of `torch.optim`, having tried its arguments.

    Raises:
        ValueError: If there is no such class, or it refuses the arguments.
    """
    found = getattr(torch.optim, name, None)
    if not (isinstance(found, type) and issubclass(found, Optimizer) and found is not Optimizer):
        raise ValueError(f"torch.optim has no optimizer {name!r}; try SGD, Adam or AdamW")
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    try:
        found([parameter], **arguments).step()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}({dict(arguments)}): {error}") from error
    return found
