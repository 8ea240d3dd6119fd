"""FedAMP: every child gets a mixture of its own."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningModule

from worldlm.callbacks.scalars import log_scalars
from worldlm.federation.averaging import weighted_mean
from worldlm.federation.messages import Download, Upload
from worldlm.federation.mixture import mixture_weights
from worldlm.federation.parameters import PARTS, Part, Tensors, clone, copy_
from worldlm.loop import Context, FederationCallback, WorldTrainer
from worldlm.topology import Node


class FedAMP(FederationCallback):
    """Sends every child of a star its own mixture of all last uploads (after Huang et al., arXiv 2007.03797).

    The nearer a model is, the more it weighs: see `worldlm.federation.mixture.mixture_weights`. The child takes the
    mixture in the place of its whole model; `Proximal` adds the pull towards it that the paper's clients have. A child
    that never uploaded gets the federation's own model, which is the mean of the last uploads by their tokens, or, if
    the federation holds data, the mixture of its own. Keeps one more model per child in memory and in checkpoints, and
    another per child while messages are under way.

    Args:
        self_weight: What a child keeps of its own last upload; at least 0, below 1.
        sigma: Scale of the squared distance, over its mean of all pairs, at which a weight falls by e; above 0.

    Raises:
        ValueError: If an argument is out of its range, or the topology is no star.
    """

    parts: frozenset[Part] = frozenset(PARTS)

    def __init__(self, self_weight: float = 0.5, sigma: float = 1.0) -> None:
        if not 0 <= self_weight < 1:
            raise ValueError(f"self_weight must be at least 0 and below 1, got {self_weight}")
        if not 0 < sigma < float("inf"):
            raise ValueError(f"sigma must be above 0 and finite, got {sigma}")
        self.self_weight = self_weight
        self.sigma = sigma
        self._models: dict[str, Tensors] = {}
        self._tokens: dict[str, int] = {}
        self._weights: dict[str, dict[str, float]] = {}

    def setup(self, trainer: WorldTrainer, pl_module: LightningModule, stage: str) -> None:  # type: ignore[override]
        tree = trainer.topology
        if tree.depth != 2:
            raise ValueError(f"FedAMP needs a star, a root and its leaves: {tree.name} has {tree.depth} levels")

    def on_download(self, trainer: WorldTrainer, context: Context, child: Node, download: Download) -> Download:
        if child.name not in self._weights:
            return download
        mixture = self._mix(self._weights[child.name])
        parts = {part: {name: mixture[name] for name in tensors} for part, tensors in download.parts.items()}
        return replace(download, parts=parts)

    def on_receive(self, trainer: WorldTrainer, context: Context, download: Download) -> None:
        for tensors in download.parts.values():
            copy_(context.state.parameters, tensors)

    def on_aggregate(self, trainer: WorldTrainer, context: Context, uploads: list[Upload]) -> None:
        for upload in uploads:
            tensors = {name: tensor for part in PARTS for name, tensor in upload.parts[part].items()}
            self._models[upload.node], self._tokens[upload.node] = clone(tensors), upload.num_tokens
        models = {name: self._models[name] for name in sorted(self._models)}
        self._weights = mixture_weights(models, self_weight=self.self_weight, sigma=self.sigma)
        own = self._weights.get(context.node.name, self._tokens)
        copy_(context.state.parameters, self._mix(own))
        scalars = {
            f"{name}/mixture/{other}": weight for name, row in self._weights.items() for other, weight in row.items()
        }
        log_scalars(trainer, scalars, context.round)

    def _mix(self, weights: Mapping[str, float]) -> Tensors:
        names = sorted(self._models)
        return weighted_mean([self._models[name] for name in names], [weights[name] for name in names])

    def state_dict(self) -> dict[str, Any]:
        return {"models": dict(self._models), "tokens": dict(self._tokens), "weights": dict(self._weights)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._models, self._tokens = dict(state_dict["models"]), dict(state_dict["tokens"])
        self._weights = dict(state_dict["weights"])
