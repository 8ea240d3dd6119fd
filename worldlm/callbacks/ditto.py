"""Ditto: each leaf trains a model of its own beside the one that it shares."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypedDict

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from worldlm.callbacks.averaging import Averaging
from worldlm.callbacks.example_privacy import ExamplePrivacy
from worldlm.callbacks.noise import Noise
from worldlm.distributed.fsdp import full_tensor_of, local_part, local_shard
from worldlm.federation.messages import Download, Upload, joined
from worldlm.federation.parameters import PARTS, Tensors, clone
from worldlm.federation.proximal import add_proximal_gradient_
from worldlm.federation.schedule import Rate
from worldlm.rounds import Context, LocalFit, RoundCallback
from worldlm.topology import Topology
from worldlm.trainer import WorldTrainer


class _Memory(TypedDict, total=False):
    shared: Tensors
    optimizer: dict[int, dict[str, Tensor | float | None]]
    optimizer_kind: str
    noise: Noise
    reliability: float


class Ditto(Averaging):
    """Trains a shared model, and at each leaf a personal model that is pulled towards it (Li et al., arXiv 2012.04221).

    The weights of a leaf are its personal model: it is evaluated and exported, and never sent. In each fit the leaf
    first trains the shared model from its download; this is what it uploads. Then it trains its personal model, with
    the term `mu / 2 * |v - w|^2`, where w is the download. Federations average the shared model as `Averaging` does, on
    a tree too.

    A fit has as many steps as with other methods: both models share them. In the paper each has all steps, and its own
    optimizer; here both use the node's AdamW, its moments and its schedule. Token counts are those of all steps.

    A leaf copies its first download, and a listener every one, as with `Averaging`. `leaf_download_rate` also moves the
    personal model towards the shared one later.

    With `ExamplePrivacy`, list `Ditto` after it. The term depends on the weights only, and so reveals nothing about the
    text.

    Args:
        mu: Strength of the pull, at least 0 (lambda in the paper).
        shared_steps: Share of the steps of a fit that train the shared model, rounded down to whole steps; in (0, 1).
        weights: As for `Averaging`.
        optimizer: As for `Averaging`.
        arguments: As for `Averaging`.
        download_rate: As for `Averaging`.
        leaf_download_rate: How far a leaf's personal model moves towards its download; None leaves it as it is.

    Raises:
        ValueError: If an argument is out of its range, a leaf has too few local steps for both models, or
            `ExamplePrivacy` is listed after this callback.
    """

    memory_schema = _Memory

    def __init__(
        self,
        mu: float = 0.1,
        shared_steps: float = 0.5,
        weights: Literal["num_tokens", "uniform"] = "num_tokens",
        optimizer: str = "SGD",
        arguments: Mapping[str, Any] | None = None,
        download_rate: Rate = 1.0,
        leaf_download_rate: Rate | None = None,
    ) -> None:
        leaf_rate: Rate = 1.0 if leaf_download_rate is None else leaf_download_rate
        super().__init__(PARTS, weights, optimizer, arguments, download_rate, leaf_rate)
        if not 0 <= mu < float("inf"):
            raise ValueError(f"mu must be at least 0, got {mu}")
        if not 0 < shared_steps < 1:
            raise ValueError(f"shared_steps must be above 0 and below 1, got {shared_steps}")
        self.mu = mu
        self.shared_steps = shared_steps
        self.keeps_personal_model = leaf_download_rate is None
        self._download: Tensors = {}  # of the current fit, on its device; empty if the node has no personal model
        self._waiting: Tensors = {}  # first the personal model, then the shared one
        self._is_personal = False  # whether the personal model is the one that trains

    def check_method(self, callbacks: Sequence[RoundCallback], topology: Topology) -> None:
        super().check_method(callbacks, topology)
        for node in topology.data_nodes:
            steps = node.settings.num_local_steps
            if node.is_leaf and topology.parent(node.name) and steps and self._num_shared(steps) == 0:
                raise ValueError(
                    f"{node.source}: {node.name} has {steps} local steps, of which a shared_steps of "
                    f"{self.shared_steps:g} leaves none for the shared model: give it at least "
                    f"{math.ceil(1 / self.shared_steps)}"
                )

    def must_follow(self, other: RoundCallback) -> str:
        if isinstance(other, ExamplePrivacy):
            return "ExamplePrivacy is listed after Ditto and would overwrite its term: list Ditto after it"
        return ""

    def _num_shared(self, steps: int) -> int:
        return int(steps * self.shared_steps)

    def on_receive(self, context: Context, download: Download) -> None:
        node, is_first = context.node, context.state.num_messages <= 1
        if not (self.keeps_personal_model and node.is_leaf) or node.listens or is_first:
            super().on_receive(context, download)

    # ------------------------------------------------------------------ training

    def on_local_fit_start(self, context: Context, fit: LocalFit) -> None:
        state, live = context.state, dict(fit.module.named_parameters())
        self._download = {}
        if not context.node.is_leaf or state.download is None:
            return
        received = joined(state.download.parts)
        self._download = {name: local_shard(received[name], live[name]).to(fit.device) for name in live}
        if fit.resumed:
            self._waiting = {name: tensor.to(state.parameters[name].device) for name, tensor in self._waiting.items()}
        else:
            self._waiting, self._is_personal = clone(state.parameters), False
            _load(live, received)

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: WorldTrainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self._download or self._is_personal:
            return
        steps = trainer.fit_loop.plan.steps_per_fit(trainer.active_node)
        if batch_idx < self._num_shared(steps) * trainer.accumulate_grad_batches:
            return
        live, personal = dict(pl_module.named_parameters()), self._waiting
        self._waiting = {
            name: full_tensor_of(tensor).to(personal[name].device, copy=True) for name, tensor in live.items()
        }
        self._is_personal = True
        _load(live, personal)

    def on_before_optimizer_step(  # type: ignore[override]
        self, trainer: WorldTrainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if self._is_personal and self._download:
            live = {name: tensor for name, tensor in pl_module.named_parameters() if tensor.grad is not None}
            gradients = {name: local_part(tensor.grad) for name, tensor in live.items() if tensor.grad is not None}
            weights = {name: local_part(tensor) for name, tensor in live.items()}
            add_proximal_gradient_(gradients, weights, self._download, self.mu)

    def on_local_fit_end(self, context: Context) -> None:
        if self._download:
            self.memory(context.state)["shared"] = self._waiting
        self._download, self._waiting, self._is_personal = {}, {}, False

    def on_upload(self, context: Context, upload: Upload) -> Upload:
        upload = super().on_upload(context, upload)
        shared = self.memory(context.state).pop("shared", None)
        if shared is None:
            return upload
        return replace(
            upload, parts={part: {name: shared[name] for name in tensors} for part, tensors in upload.parts.items()}
        )

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        return {"waiting": dict(self._waiting), "is_personal": self._is_personal}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._waiting = dict(state_dict["waiting"])
        self._is_personal = bool(state_dict["is_personal"])


@torch.no_grad()
def _load(live: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> None:
    """Overwrite the live parameters by a model, or this device's shards of it."""
    for name, parameter in live.items():
        local_part(parameter).copy_(local_shard(whole[name], parameter))
