"""Weighted averaging of chosen parts, with any outer optimizer."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

import torch
from torch import Tensor
from torch.optim import Optimizer

from worldlm.federation.averaging import move_towards_, outer_step_, weighted_mean
from worldlm.federation.messages import Download, Upload
from worldlm.federation.parameters import PARTS, Part, Tensors
from worldlm.federation.schedule import Rate, check_rate, in_round
from worldlm.federation.state import NodeState
from worldlm.federation.token_rows import weighted_mean_by_rows
from worldlm.rounds import Context, RoundCallback, World
from worldlm.topology import Node, Topology
from worldlm.topology.changes import Changes
from worldlm.trainer import FederationCallback

log = logging.getLogger(__name__)


class _Memory(TypedDict, total=False):
    optimizer: dict[int, dict[str, Tensor | float | None]]
    optimizer_kind: str


@runtime_checkable
class WeighsParent(Protocol):
    """A callback that weighs a node's parent against the node itself, as `AttentionAggregation`."""

    def parent_weight(self, context: Context, download: Download) -> float:
        """Return the weight of the parent's keys beside the node's own, in (0, 1)."""


@runtime_checkable
class WeighsRows(Protocol):
    """A callback that weighs every row of a tensor by itself, as `TokenRows`."""

    part: Part
    """The part that the tensor belongs to."""

    def row_shares(self, context: Context, upload: Upload) -> Tensors:
        """Return how an upload's weight is spread over the rows, float64 [rows] summing to 1, by the tensor's name."""


class Averaging(FederationCallback):
    """Averages parts of the model over a federation's participants, and steps an outer optimizer with the result.

    On download a node overwrites these parts with its parent's, or moves only part of the way towards them (a soft
    download): `B_q <- (1 - rate) B_q + rate B_p`. What a federation then holds is what its own children get, and where
    its pseudo-gradients start. With SGD(lr=1), the default, and all parts, this is
    FedAvg (McMahan et al., arXiv 1602.05629); on a tree HierFAVG (Liu et al., arXiv 1905.06641); with the backbone
    alone FedPer (Arivazhagan et al., arXiv 1912.00818); with Nesterov SGD(0.7, 0.9) DiLoCo (arXiv 2311.08105).

    Args:
        parts: Parts to average: backbone, keys, values.
        weights: `num_tokens` weighs a participant by the tokens it trained on, `uniform` all alike. A node's
            `weight` in the topology replaces its number of tokens.
        optimizer: Name of a class of `torch.optim`; a federation's `outer_optimizer` in the topology wins.
        arguments: Its keyword arguments.
        download_rate: How far a federation moves towards its parent on download; above 0, at most 1, which copies. Two
            are those of the first and of the last round: `[1.0, 0.1]` shares all at first and little in the end.
        leaf_download_rate: The same for a leaf.
        attentive: Whether these rates are multiplied by the weight that downward attention gives to the parent's keys
            beside the node's own: a parent that is unlike the node, as one that noise has carried away, is not
            followed.

    Raises:
        ValueError: If a rate is out of its range, or moves in a run without an end; a part or an optimizer does not
            exist; the optimizer refuses its arguments; or there is no attention to ask.
    """

    enforces = frozenset({"outer_optimizer", "weight"})
    memory_schema = _Memory

    def __init__(
        self,
        parts: Sequence[Part] = ("backbone",),
        weights: Literal["num_tokens", "uniform"] = "num_tokens",
        optimizer: str = "SGD",
        arguments: Mapping[str, Any] | None = None,
        download_rate: Rate = 1.0,
        leaf_download_rate: Rate = 1.0,
        attentive: bool = False,
    ) -> None:
        if not parts or set(parts) - set(PARTS):
            raise ValueError(f"parts must be some of {', '.join(PARTS)}, got {list(parts)}")
        if weights not in ("num_tokens", "uniform"):
            raise ValueError(f"weights must be num_tokens or uniform, got {weights!r}")
        self.parts = frozenset(parts)
        self.weights = weights
        self.default = (optimizer, dict(arguments or {"lr": 1.0}))
        self.download_rate = check_rate("download_rate", download_rate)
        self.leaf_download_rate = check_rate("leaf_download_rate", leaf_download_rate)
        self.attentive = attentive
        find_optimizer(*self.default)

    @property
    def state_key(self) -> str:
        return self._generate_state_key(parts=sorted(self.parts))

    def check_method(self, callbacks: Sequence[RoundCallback], topology: Topology) -> None:
        if self.attentive and not any(isinstance(other, WeighsParent) for other in callbacks):
            raise ValueError("an attentive Averaging needs an AttentionAggregation among trainer.callbacks")
        for node in topology.nodes.values():
            try:
                find_optimizer(*self._optimizer(node))
            except ValueError as error:
                raise ValueError(f"{node.source}: outer_optimizer of {node.name}: {error}") from error

    def _optimizer(self, node: Node) -> tuple[str, dict[str, Any]]:
        own = node.settings.outer_optimizer
        return (own.name, dict(own.arguments)) if own else self.default

    def on_topology_change(self, world: World, changes: Changes, states: Mapping[str, NodeState]) -> None:
        for name, node in world.topology.nodes.items():
            if all(child.listens for child in node.children):
                states[name].memory.pop(self.state_key, None)

    def on_receive(self, context: Context, download: Download) -> None:
        leaf = context.node.is_leaf
        rate = in_round(self.leaf_download_rate if leaf else self.download_rate, context.round, context.num_rounds)
        attention = context.find(WeighsParent) if self.attentive else None  # type: ignore[type-abstract]
        if attention is not None:
            rate *= attention.parent_weight(context, download)
            context.log({f"{context.node.name}/download_rate": rate})
        for part in self.parts:
            move_towards_(context.state.parameters, download.parts[part], rate)

    def on_aggregate(self, context: Context, uploads: list[Upload]) -> None:
        name, nodes, memory = context.node.name, context.world.topology.nodes, self.memory(context.state)
        weights = [self._weight(nodes[upload.node], upload) for upload in uploads]
        mean = self._mean(context, uploads, weights)
        optimizer, arguments = self._optimizer(context.node)
        kind = _kind(optimizer, arguments)
        if memory.get("optimizer_kind", kind) != kind:  # in the checkpoint that the run goes on from
            log.warning("the outer optimizer of %s was %s: %s begins anew", name, memory["optimizer_kind"], kind)
            del memory["optimizer"]
        memory["optimizer_kind"] = kind
        memory["optimizer"], length = outer_step_(
            context.state.parameters,
            mean,
            find_optimizer(optimizer, arguments),
            arguments,
            memory.get("optimizer"),
        )
        context.log({f"{name}/pseudo_gradient_norm": length})

    def _mean(self, context: Context, uploads: list[Upload], weights: list[float]) -> Tensors:
        models = [self._tensors(upload) for upload in uploads]
        rows = context.find(WeighsRows)  # type: ignore[type-abstract]
        if rows is None or rows.part not in self.parts:
            return weighted_mean(models, weights)
        shares = [rows.row_shares(context, upload) for upload in uploads]
        return weighted_mean_by_rows(models, weights, shares, context.state.parameters)

    def _tensors(self, upload: Upload) -> Tensors:
        return {name: tensor for part in PARTS if part in self.parts for name, tensor in upload.parts[part].items()}

    def _weight(self, node: Node, upload: Upload) -> float:
        if node.weight is not None:
            return node.weight
        return upload.num_tokens if self.weights == "num_tokens" else 1.0


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


def _kind(name: str, arguments: Mapping[str, Any]) -> str:
    """Describe an optimizer by all but its learning rate: what is alike in this can take up each other's state."""
    return f"{name}({', '.join(f'{key}={arguments[key]}' for key in sorted(arguments) if key != 'lr')})"
