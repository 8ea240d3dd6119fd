"""The language model as a LightningModule: loss, optimizer, schedule, evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from worldlm.models.initial_weights import find_origin, initial_weights
from worldlm.models.mpt import MPT, Architecture, Cache, differences
from worldlm.models.padded_loss import mean_of_examples
from worldlm.models.partition import Split, partition
from worldlm.topology.errors import join_names


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerSettings:
    """The inner optimizer: AdamW with linear warmup and cosine decay.

    Raises:
        ValueError: If a value is out of range.
    """

    lr: float = 4e-4
    """Peak learning rate, above 0."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the two moments, each in [0, 1)."""

    weight_decay: float = 0.0
    """Decoupled weight decay of all parameters, at least 0."""

    warmup_steps: int = 100
    """Optimizer steps of linear warmup, at least 0."""

    min_lr_ratio: float = 0.1
    """Final learning rate of the cosine, as a fraction of `lr`, in [0, 1]."""

    eps: float = 1e-8
    """Added to AdamW's denominator, above 0."""

    def __post_init__(self) -> None:
        checks = {
            "lr": (self.lr > 0, "above 0"),
            "betas": (all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "warmup_steps": (self.warmup_steps >= 0, "at least 0"),
            "min_lr_ratio": (0 <= self.min_lr_ratio <= 1, "in [0, 1]"),
            "eps": (self.eps > 0, "above 0"),
        }
        for name, (holds, allowed) in checks.items():
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be {allowed}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """How well a model predicts a text."""

    nats: float
    """Mean negative log likelihood, in nats per token."""

    num_tokens: int
    """Number of predicted tokens."""

    @property
    def perplexity(self) -> float:
        """Perplexity per token; infinite if it overflows a float."""
        return math.exp(self.nats) if self.nats < 700 else math.inf

    def bits_per_byte(self, bytes_per_token: float) -> float:
        """Bits per UTF-8 byte, which is comparable between tokenizers.

        Args:
            bytes_per_token: Mean number of UTF-8 bytes of text per token.
        """
        return self.nats / math.log(2) / bytes_per_token


def warmup_cosine(step: int, warmup_steps: int, total_steps: int | None, min_lr_ratio: float) -> float:
    """Factor on the peak learning rate.

    Args:
        step: Number of optimizer steps before this one.
        warmup_steps: Steps of linear warmup; the last of them runs at the peak.
        total_steps: Steps of the whole run, after which the factor is constant; with None there is no decay.
        min_lr_ratio: Factor at `total_steps`.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if total_steps is None:
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return min_lr_ratio + (1 - min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


class LanguageModule(LightningModule):
    """An MPT language model, its B, K, V partition and its inner optimizer.

    A batch is int64 [batch, seq + 1]: all but the last token are inputs, all but the first are targets.
    Settings are stored in the checkpoint as plain dicts, so that it loads with `weights_only=True`;
    `from_hyper_parameters` restores them.

    Args:
        architecture: The model's sizes.
        split: The patterns of the key and value layers.
        optimizer: The inner optimizer and its schedule.
        init_from: Initial weights when a fit begins: a folder of a Hugging Face MPT model (`config.json` and
            safetensors), or a node of an earlier run, `RUN:NODE` or `RUN:NODE@ROUND`. A resumed run ignores it. By
            default the weights are random.

    Raises:
        ValueError: If the split does not match the model's parameter names (see `partition`).
    """

    def __init__(
        self,
        architecture: Architecture,
        split: Split,
        optimizer: OptimizerSettings,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(
            {
                "architecture": asdict(architecture),
                "split": asdict(split),
                "optimizer": asdict(optimizer),
                "init_from": init_from,
            }
        )
        self.architecture = architecture
        self.optimizer_settings = optimizer
        self.model = MPT(architecture)
        self.init_from = init_from
        self._is_fresh = True
        self._has_warned_of_warmup = False
        self._parts = partition([name for name, _ in self.named_parameters()], split)

    @classmethod
    def from_hyper_parameters(cls, hyper_parameters: Mapping[str, Any]) -> LanguageModule:
        """Build a newly initialised module from a checkpoint's `hyper_parameters`, without `init_from`."""
        return cls(
            Architecture(**hyper_parameters["architecture"]),
            Split(**hyper_parameters["split"]),
            OptimizerSettings(**hyper_parameters["optimizer"]),
        )

    def check_init_from(self) -> None:
        """Check before the fit, without reading weights, whether the module can start from `init_from`.

        Raises:
            ValueError: If the source does not exist, or has another architecture.
        """
        if self.init_from is not None:
            find_origin(self.init_from, self.architecture)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint's weights are for this model, and use them instead of `init_from`.

        Raises:
            ValueError: If they are for another architecture, or for another partition.
        """
        saved = checkpoint["hyper_parameters"]
        mistakes = differences(saved["architecture"], self.architecture)
        parts = {} if mistakes else partition(list(self._parts), Split(**saved["split"]))
        moved = {name: part for name, part in self._parts.items() if parts.get(name, part) != part}
        mistakes += [
            f"{name} is in {parts[name]} in the saved model, but in {part} in this one" for name, part in moved.items()
        ]
        if mistakes:
            raise ValueError(f"the checkpoint is of another model: {join_names(mistakes)}")
        self._is_fresh = False

    def on_fit_start(self) -> None:
        """Load the weights of `init_from` once, before the world is built.

        Raises:
            ValueError: As `worldlm.models.initial_weights.initial_weights`.
        """
        if self._is_fresh and self.init_from is not None:
            self.load_weights(initial_weights(self.init_from, self.architecture, dict(self.named_parameters())))
        self._is_fresh = False

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights, one for each of `self.named_parameters()`, into the module."""
        for name, parameter in self.named_parameters():
            parameter.copy_(weights[name])

    def partition(self) -> dict[str, str]:
        """Part of each of `self.named_parameters()`; the tied head appears once, as the embedding."""
        return dict(self._parts)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits [batch, seq, vocab_size] of tokens [batch, seq]; with a cache as in `MPT`."""
        logits: Tensor = self.model(tokens, cache)
        return logits

    def loss(self, batch: Tensor) -> Tensor:
        """Mean cross entropy in nats per token, in float32; 0 for an empty batch, which Poisson sampling may draw.

        Args:
            batch: Tokens, int64 [batch, seq + 1]; or int32, with negative padding: see `mean_of_examples`.
        """
        if batch.dtype == torch.int32:
            return mean_of_examples(self(batch[:, :-1].clamp(min=0)), batch[:, 1:])
        logits: Tensor = self(batch[:, :-1])
        if batch.shape[0] == 0:
            return logits.float().sum()
        return F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Loss of a batch; the monitoring callbacks log it."""
        return self.loss(batch)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Fused AdamW over all parameters, with warmup and cosine over the trainer's steps."""
        settings = self.optimizer_settings
        optimizer = torch.optim.AdamW(
            self.parameters(),
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        # Lightning does not clip gradients if the optimizer unscales them itself, as fused AdamW does under mixed
        # precision. Without this flag the gradient scaler unscales them, if there is one.
        optimizer._step_supports_amp_scaling = False
        factor = partial(
            warmup_cosine,
            warmup_steps=settings.warmup_steps,
            total_steps=self._total_steps(),
            min_lr_ratio=settings.min_lr_ratio,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"},
        }

    def _total_steps(self) -> int | None:
        """Steps of the whole run; None if they are unlimited."""
        total = self.trainer.estimated_stepping_batches
        if total == -1 or math.isinf(total):
            return None
        warmup_steps = self.optimizer_settings.warmup_steps
        if warmup_steps >= total and not self._has_warned_of_warmup:
            self._has_warned_of_warmup = True  # once, although the optimizers of all nodes are built here
            rank_zero_warn(
                f"warmup_steps is {warmup_steps}, but a node trains only {int(total)} steps: "
                "its learning rate will not decay"
            )
        return int(total)

    def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Loss of a batch of held-out text; the callbacks use `evaluate` instead."""
        return self.loss(batch)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Tensor]) -> Evaluation:
        """Measure the model on a text, in evaluation mode and without gradients.

        It runs in the autocast context of the caller and does not communicate with other processes.

        Args:
            batches: Tokens, int64 [batch, seq + 1] each; they are moved to the module's device.

        Returns:
            Nats per token; infinite if the probability of a token rounds to zero in float32.

        Raises:
            ValueError: If there is no token to predict.
        """
        was_training = self.training
        # the sums and the order of torchmetrics.text.Perplexity, which would import scipy and transformers
        nats, num_tokens = torch.zeros((), dtype=torch.float64, device=self.device), 0
        self.eval()
        try:
            for batch in batches:
                tokens = batch.to(self.device)
                probabilities = F.softmax(self(tokens[:, :-1]).float().flatten(0, 1), dim=1)
                nats -= probabilities.gather(1, tokens[:, 1:].reshape(-1, 1)).log().sum()
                num_tokens += tokens[:, 1:].numel()
        finally:
            self.train(was_training)
        if num_tokens == 0:
            raise ValueError("there are no tokens to evaluate: the text is empty")
        return Evaluation(nats=float(nats) / num_tokens, num_tokens=num_tokens)
