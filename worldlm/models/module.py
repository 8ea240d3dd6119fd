"""The language model as a LightningModule: loss, optimizer, schedule, evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from worldlm.federation.parameters import weights_digest
from worldlm.models.architecture import Architecture
from worldlm.models.batches import Batch, read_batch
from worldlm.models.causality import check_causal
from worldlm.models.evaluation import Evaluation, evaluate
from worldlm.models.initial_weights import check_base, find_origin, initial_weights
from worldlm.models.lora import Lora, adapt_, lora_of, once_per_tensor
from worldlm.models.optimizer import OptimizerSettings, warmup_cosine
from worldlm.models.padded_loss import mean_of_examples, mean_of_targets
from worldlm.models.partition import Split, partition
from worldlm.models.transformer import Transformer
from worldlm.topology.errors import join_names

_NOT_GIVEN, _NO_TRANSFORMER, _NO_LORA = Architecture(), Transformer(), Lora()
_NO_SPLIT, _DEFAULT_OPTIMIZER = Split(), OptimizerSettings()


def architecture_of(hyper_parameters: Mapping[str, Any]) -> Architecture | Transformer:
    """Return the description of the model in the `hyper_parameters` of a checkpoint."""
    if hyper_parameters.get("transformer") is not None:
        return Transformer(**hyper_parameters["transformer"])
    return Architecture(**hyper_parameters["architecture"])


class LanguageModule(LightningModule):
    """A language model, its B, K, V partition and its inner optimizer.

    A batch is int64 [batch, seq + 1]: all but the last token are inputs, all but the first are targets. A batch of
    conversations is a dict; see `worldlm.models.batches`.
    Settings are stored in the checkpoint as plain dicts, so that it loads with `weights_only=True`;
    `from_hyper_parameters` restores them.

    Args:
        architecture: The sizes of an MPT, WorldLM's own model.
        split: The key and value layers.
        optimizer: The inner optimizer and its schedule.
        init_from: Initial weights when a fit begins: a Hugging Face folder (`config.json` and safetensors), a model of
            the Hub, `owner/name@revision`, or a node of an earlier run, `RUN:NODE` or `RUN:NODE@ROUND`. A resumed run
            ignores it. By default the weights are random. With `lora` it is the folder, or the model of the Hub, with
            the frozen weights, which a resumed run reads too.
        transformer: A model of transformers, in place of `architecture`.
        lora: Adapters of the model of transformers. Its own weights are frozen.
        compile_model: Whether `torch.compile` compiles the model when a fit begins. This takes minutes, and rounds
            differently.

    Raises:
        ValueError: If not exactly one of `architecture` and `transformer` is given, the split does not match the
            model's parameter names (see `partition`), or `lora` is given without `transformer` or `init_from`, or
            matches no layer.
    """

    def __init__(
        self,
        architecture: Architecture = _NOT_GIVEN,
        split: Split = _NO_SPLIT,
        optimizer: OptimizerSettings = _DEFAULT_OPTIMIZER,
        init_from: str | None = None,
        transformer: Transformer = _NO_TRANSFORMER,
        lora: Lora = _NO_LORA,
        compile_model: bool = False,
    ) -> None:
        super().__init__()
        if architecture.is_given == transformer.is_given:
            both = "both are given" if architecture.is_given else "none is given"
            raise ValueError(f"the model needs either architecture or transformer, but {both}")
        if lora.is_given:
            lora.check(transformer.is_given, init_from)
        self.save_hyperparameters(
            {
                "architecture": asdict(architecture) if architecture.is_given else None,
                "transformer": asdict(transformer) if transformer.is_given else None,
                "split": asdict(split),
                "optimizer": asdict(optimizer),
                "init_from": init_from,
                "lora": asdict(lora) if lora.is_given else None,
            }
        )
        self.architecture: Architecture | Transformer = transformer if transformer.is_given else architecture
        self.optimizer_settings = optimizer
        self.model = self.architecture.build()
        self.init_from = init_from
        self.lora = lora
        self.frozen = [f"model.{name}" for name in adapt_(self.model, lora)] if lora.is_given else []
        """Names of the frozen weights of a model with adapters."""
        self._ddp_params_and_buffers_to_ignore = self.frozen  # DDP would send all buffers before each step
        self._compiles = compile_model
        self._is_fresh = True
        self._has_warned_of_warmup = False
        self._parts = partition([name for name, _ in self.named_parameters()], split.resolved(self.model, "model."))

    @classmethod
    def from_hyper_parameters(cls, hyper_parameters: Mapping[str, Any]) -> LanguageModule:
        """Build a newly initialised module from a checkpoint's `hyper_parameters`; `init_from` is kept for adapters."""
        split, optimizer = Split(**hyper_parameters["split"]), OptimizerSettings(**hyper_parameters["optimizer"])
        sizes = architecture_of(hyper_parameters)
        if not isinstance(sizes, Transformer):
            return cls(sizes, split, optimizer)
        lora = lora_of(hyper_parameters)
        base = hyper_parameters["init_from"] if lora.is_given else None
        return cls(split=split, optimizer=optimizer, transformer=sizes, lora=lora, init_from=base)

    def check_init_from(self) -> None:
        """Check, without reading weights, whether the module can start from `init_from`.

        Raises:
            ValueError: If the source does not exist, has another architecture, or is no folder and adapters need one.
        """
        if self.lora.is_given:
            check_base(str(self.init_from))
        if self.init_from is not None:
            find_origin(self.init_from, self.architecture)

    @property
    def base_digest(self) -> str | None:
        """The digest of the frozen weights; None before `load_base`, and without adapters."""
        return self.hparams.get("base_digest")

    def setup(self, stage: str) -> None:
        """Read the frozen weights, before a checkpoint is restored and before the module moves to a device."""
        if self.lora.is_given:
            self.load_base()
        if stage == "fit" and isinstance(self.architecture, Transformer):
            check_causal(self.architecture, self.model)
        if self._compiles and stage == "fit":
            self.model.compile()
            self._compiles = False

    @torch.no_grad()
    def load_base(self, expected: str | None = None) -> None:
        """Read the frozen weights of a model with adapters from `init_from`, unless they were read before.

        Args:
            expected: The digest of the weights on which the adapters were trained; None if they are new.

        Raises:
            ValueError: As `worldlm.models.initial_weights.initial_weights`, or if the weights have another digest.
        """
        if self.base_digest is None:
            check_base(str(self.init_from))
            current = {name: self.get_buffer(name) for name in self.frozen}
            weights = initial_weights(str(self.init_from), self.architecture, current)
            for name, tensor in current.items():
                tensor.copy_(weights[name])
            self.hparams["base_digest"] = weights_digest(weights)
        if expected not in (None, self.base_digest):
            raise ValueError(
                f"init_from is {self.init_from}: its weights are not those on which the adapters were trained (their "
                f"digest is {self.base_digest}, and it was {expected})"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        return super()._apply(once_per_tensor(fn), recurse)  # type: ignore[no-untyped-call]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint's weights are for this model, and use them instead of `init_from`.

        Raises:
            ValueError: If they are for another architecture, partition, adapters, or frozen weights.
        """
        saved = checkpoint["hyper_parameters"]
        mistakes = self.architecture.differences(saved) or self.lora.differences(saved)
        parts = {}
        if not mistakes:
            parts = partition(list(self._parts), Split(**saved["split"]).resolved(self.model, "model."))
        moved = {name: part for name, part in self._parts.items() if parts.get(name, part) != part}
        mistakes += [
            f"{name} is in {parts[name]} in the saved model, but in {part} in this one" for name, part in moved.items()
        ]
        if mistakes:
            raise ValueError(f"the checkpoint is of another model: {join_names(mistakes)}")
        if self.lora.is_given:
            self.load_base(saved.get("base_digest"))
        self._is_fresh = False

    def on_fit_start(self) -> None:
        """Load the weights of `init_from` once, before the world is built.

        Raises:
            ValueError: As `worldlm.models.initial_weights.initial_weights`.
        """
        if self._is_fresh and self.init_from is not None and not self.lora.is_given:
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

    def embeddings(self) -> list[str]:
        """Names of the parameters with one row per token; none if the embedding is frozen."""
        return [f"model.{name}" for name in self.architecture.embeddings(self.model)]

    def forward(self, tokens: Tensor, cache: Any = None, position_ids: Tensor | None = None) -> Tensor:
        """Logits [batch, seq, vocab_size] of tokens [batch, seq].

        Args:
            tokens: Token ids.
            cache: What `architecture.new_cache` returns.
            position_ids: Without a cache: positions that restart at 0 in each conversation of a row, [batch, seq].
        """
        return self.architecture.logits(self.model, tokens, cache, position_ids)

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross entropy of the predicted tokens in nats, in float32.

        It is 0, with gradients of 0, for a batch without tokens to predict, which Poisson sampling may draw.

        Args:
            batch: See `worldlm.models.batches`.
        """
        examples = read_batch(batch)
        logits: Tensor = self(examples.tokens, position_ids=examples.position_ids)
        if examples.weighs_examples:
            return mean_of_examples(logits, examples.targets)
        if not examples.predicts_all:
            return mean_of_targets(logits, examples.targets)
        if len(examples.tokens) == 0:
            return logits.float().sum()
        return F.cross_entropy(logits.flatten(0, 1).float(), examples.targets.flatten())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
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

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Loss of a batch of held-out text; the callbacks use `evaluate` instead."""
        return self.loss(batch)

    def evaluate(self, batches: Iterable[Batch]) -> Evaluation:
        """Measure the model on a text, see `worldlm.models.evaluation.evaluate`."""
        return evaluate(self, batches)
