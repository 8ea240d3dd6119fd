"""Weighted averaging of chosen parts of the model, with any outer optimizer."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

import torch
from torch import Tensor
from torch.optim import Optimizer

from worldlm.callbacks.noise import Noise, Weighed, keep_noise, own_share, shrunk, weigh, with_noise
from worldlm.callbacks.rates import download_rate
from worldlm.federation.averaging import move_towards_, outer_step_
from worldlm.federation.messages import Download, Upload
from worldlm.federation.parameters import PARTS, Part, Tensors
from worldlm.federation.schedule import Rate, check_rate
from worldlm.federation.state import NodeState
from worldlm.federation.token_rows import weighted_mean_by_rows
from worldlm.rounds import Context, RoundCallback, World
from worldlm.topology import Node, Topology
from worldlm.topology.changes import Changes
from worldlm.topology.errors import check_choice
from worldlm.trainer import FederationCallback

log = logging.getLogger(__name__)


class _Memory(TypedDict, total=False):
    optimizer: dict[int, dict[str, Tensor | float | None]]
    optimizer_kind: str
    noise: Noise
    reliability: float


@runtime_checkable
class WeighsRows(Protocol):
    """A callback that weighs each row of a tensor separately, as `TokenRows` does."""

    part: Part
    """The part that the tensor belongs to."""

    def row_shares(self, context: Context, upload: Upload | None) -> Tensors:
        """Return the distribution of an upload's weight over the rows: float64 [rows] summing to 1, by tensor name.

        Without an upload, all rows have the same share.
        """


class Averaging(FederationCallback):
    """Averages parts of the model over a federation's participants and steps an outer optimizer with the result.

    On download, a node overwrites these parts with its parent's. In a soft download it moves only part of the way
    towards them: `B_q <- (1 - rate) B_q + rate B_p`. A federation sends the resulting weights to its own children, and
    its pseudo-gradients start from them. A listener, and a node that receives its first download, copy their parent.

    Uploads with privacy noise count less, and a federation moves less far towards a mean that is mostly noise; see
    `worldlm.federation.noise_weights`. A node does not follow a parent that knows nothing but noise.

    With SGD(lr=1), the default, and all parts, this is FedAvg (McMahan et al., arXiv 1602.05629), and on a tree
    HierFAVG (Liu et al., arXiv 1905.06641). With the backbone alone it is FedPer (Arivazhagan et al., arXiv
    1912.00818). With Nesterov SGD(0.7, 0.9) it is DiLoCo (arXiv 2311.08105).

    Args:
        parts: Parts to average: backbone, keys, values.
        weights: `num_tokens` weighs a participant by the tokens it trained on; `uniform` weighs all equally. A node's
            `weight` in the topology replaces either.
        optimizer: Name of a class of `torch.optim`. A federation's `outer_optimizer` in the topology takes precedence.
        arguments: Keyword arguments of the optimizer.
        download_rate: How far a federation moves towards its parent on download; above 0 and at most 1, which copies
            the parent. Two values are the rates of the first and of the last round: `[1.0, 0.1]` starts with a copy
            and ends with a small step.
        leaf_download_rate: The same for a leaf.

    Raises:
        ValueError: If a rate is out of its range or changes over a run without a last round, a part or an optimizer
            does not exist, or the optimizer rejects its arguments.
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
    ) -> None:
        if not parts or isinstance(parts, str):
            raise ValueError(f"parts must be a list of some of {', '.join(PARTS)}, got {parts!r}")
        for part in parts:
            check_choice("each of parts", part, PARTS)
        check_choice("weights", weights, ("num_tokens", "uniform"))
        self.parts = frozenset(parts)
        self.weights = weights
        self.default_optimizer = (optimizer, dict(arguments or {"lr": 1.0}))
        self.download_rate = check_rate("download_rate", download_rate)
        self.leaf_download_rate = check_rate("leaf_download_rate", leaf_download_rate)
        checked_optimizer(*self.default_optimizer)

    @property
    def state_key(self) -> str:  # two Averagings of different parts keep separate memories
        return self._generate_state_key(parts=sorted(self.parts))

    def check_method(self, callbacks: Sequence[RoundCallback], topology: Topology) -> None:
        for node in topology.nodes.values():
            try:
                checked_optimizer(*self._optimizer(node))
            except ValueError as error:
                raise ValueError(f"{node.source}: outer_optimizer of {node.name}: {error}") from error

    def _optimizer(self, node: Node) -> tuple[str, dict[str, Any]]:
        own = node.settings.outer_optimizer
        return (own.name, dict(own.arguments)) if own else self.default_optimizer

    def on_topology_change(self, world: World, changes: Changes, states: Mapping[str, NodeState]) -> None:
        for name, node in world.topology.nodes.items():
            if all(child.listens for child in node.children):  # it no longer aggregates: drop its optimizer
                states[name].memory.pop(self.state_key, None)

    def on_download(self, context: Context, child: Node, download: Download) -> Download:
        memory = self.memory(context.state)
        if "noise" not in memory:
            return download
        known = memory["noise"]["num_nodes"] + memory.get("reliability", 0.0)
        return replace(download, reliability=min(download.reliability, known, 1.0))

    def on_receive(self, context: Context, download: Download) -> None:
        own = own_share(self.memory(context.state))
        rate = download_rate(context, self.download_rate, self.leaf_download_rate, own)
        if download.reliability < 1.0:
            rate *= download.reliability
            context.log({f"{context.node.name}/download_rate": rate})
        if context.node.children:
            self.memory(context.state)["reliability"] = download.reliability
        for part in self.parts:
            move_towards_(context.state.parameters, download.parts[part], rate)

    def on_upload(self, context: Context, upload: Upload) -> Upload:
        return with_noise(upload, self.parts, self.memory(context.state).get("noise"))

    def on_aggregate(self, context: Context, uploads: list[Upload]) -> None:
        name, nodes, memory = context.node.name, context.world.topology.nodes, self.memory(context.state)
        weighed = weigh(context, uploads, [self._weight(nodes[upload.node], upload) for upload in uploads], self.parts)
        mean = self.mean(context, uploads, weighed)
        optimizer, arguments = self._optimizer(context.node)
        kind = _kind(optimizer, arguments)
        if memory.get("optimizer_kind", kind) != kind:  # the checkpoint has the state of another optimizer
            log.warning("outer optimizer of %s changed from %s to %s: its saved state is not used",
                        name, memory["optimizer_kind"], kind)  # fmt: skip
            del memory["optimizer"]
        memory["optimizer_kind"] = kind
        keep_noise(memory, weighed)
        memory["optimizer"], gradient_norm = outer_step_(
            context.state.parameters,
            mean,
            checked_optimizer(optimizer, arguments),
            arguments,
            memory.get("optimizer"),
        )
        context.log({f"{name}/pseudo_gradient_norm": gradient_norm})

    def mean(self, context: Context, uploads: list[Upload], weighed: Weighed) -> Tensors:
        """Return the mean of the uploads, as new tensors by name. Override it to aggregate by another rule.

        `weighed.weights` has one number for each upload; they need not sum to 1. `context.state.parameters` are the
        weights that the children received. The outer optimizer steps from there towards the mean.
        """
        models = [self._tensors(upload) for upload in uploads]
        return weighed_mean(context, models, weighed, row_shares(context, uploads, self.parts))

    def _tensors(self, upload: Upload) -> Tensors:
        return {name: tensor for part in PARTS if part in self.parts for name, tensor in upload.parts[part].items()}

    def _weight(self, node: Node, upload: Upload) -> float:
        weight = participant_weight(node, upload)
        return 1.0 if self.weights == "uniform" and node.weight is None else weight


def row_shares(context: Context, uploads: Sequence[Upload | None], parts: Collection[Part]) -> list[Tensors]:
    """Return the row shares of every upload, by tensor name: empty if none of the parts is averaged by rows."""
    rows = context.find(WeighsRows)  # type: ignore[type-abstract]
    if rows is None or rows.part not in parts:
        return [{} for _ in uploads]
    return [rows.row_shares(context, upload) for upload in uploads]


def weighed_mean(
    context: Context, models: Sequence[Tensors], weighed: Weighed, row_shares: Sequence[Tensors]
) -> Tensors:
    """Return the mean of uploads, as new tensors by name, moved away from the federation's own as far as noise allows.

    Args:
        context: The federation.
        models: The tensors of every upload.
        weighed: The weights of the uploads.
        row_shares: Row shares of every upload for tensors that are averaged by rows.
    """
    start = context.state.parameters
    mean = weighted_mean_by_rows(models, weighed.weights, row_shares, start, weighed.ratios)
    by_rows = {name: mean[name] for name in row_shares[0]}  # these have moved as far as each row may
    return {**shrunk(start, mean, weighed.shrinkage), **by_rows}


def participant_weight(node: Node, upload: Upload) -> float:
    """Return the weight of a participant in the mean: its `weight` in the topology, by default its tokens."""
    return upload.num_tokens if node.weight is None else node.weight


def checked_optimizer(name: str, arguments: Mapping[str, Any]) -> type[Optimizer]:
    """Return a class of `torch.optim` after one trial step with its arguments.

    Raises:
        ValueError: If there is no such class, or it rejects the arguments.
    """
    optimizer = getattr(torch.optim, name, None)
    if not (isinstance(optimizer, type) and issubclass(optimizer, Optimizer) and optimizer is not Optimizer):
        raise ValueError(f"torch.optim has no optimizer {name!r}; try SGD, Adam or AdamW")
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    try:
        optimizer([parameter], **arguments).step()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}({dict(arguments)}): {error}") from error
    return optimizer


def _kind(name: str, arguments: Mapping[str, Any]) -> str:
    """Describe an optimizer without its learning rate. Optimizers with equal descriptions can share saved state."""
    return f"{name}({', '.join(f'{key}={arguments[key]}' for key in sorted(arguments) if key != 'lr')})"
