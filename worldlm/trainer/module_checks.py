"""Checks that a LightningModule can be trained as a node of a world, before the first round."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from worldlm.federation.parameters import PARTS
from worldlm.models.partition import parts_of
from worldlm.rounds.callback import RoundCallback
from worldlm.topology.errors import join_names


def check_module(trainer: pl.Trainer, callbacks: Sequence[RoundCallback]) -> None:
    """Check the trainer's module, and keep its metrics from synchronising processes that train different nodes.

    Args:
        trainer: Has the module, and a data module or none.
        callbacks: The callbacks of the method.

    Raises:
        ValueError: If the module steps its optimizers itself or keeps running statistics, a callback merges none of its
            parts, or a checkpoint could not be read again.
    """
    module = trainer.lightning_module
    kind, parts = type(module).__name__, parts_of(module)
    if not module.automatic_optimization:
        raise ValueError(
            f"{kind} sets automatic_optimization to False, but a node has one optimizer, which Lightning steps"
        )
    tracking = [
        name for name, layer in module.named_modules() if isinstance(layer, _NormBase) and layer.track_running_stats
    ]
    if tracking:
        raise ValueError(
            f"{kind}: {join_names(tracking)} keeps running statistics, which would mix the data of all nodes: use "
            "LayerNorm or GroupNorm, or track_running_stats=False"
        )
    merged = {type(callback).__name__: callback.parts for callback in callbacks if callback.parts}
    if useless := [name for name, of_callback in merged.items() if not of_callback & {*parts.values()}]:
        absent = [part for part in PARTS if part not in parts.values()]
        raise ValueError(
            f"{useless[0]} merges none of the parameters of {kind}, which has no {' and no '.join(absent)}: give it a "
            "method partition() that returns the part of each parameter by name, as worldlm.models.LanguageModule has"
        )
    if trainer.checkpoint_callbacks:
        _check_hyper_parameters(module, trainer.datamodule)  # type: ignore[attr-defined]
    for layer in module.modules():
        if hasattr(layer, "sync_on_compute"):  # a metric of torchmetrics
            layer.sync_on_compute = False  # type: ignore[assignment]


def _check_hyper_parameters(*holders: Any) -> None:
    """Check that what `save_hyperparameters` has kept can be read from a checkpoint without executing code."""
    for holder in filter(None, holders):
        for name, value in dict(holder.hparams).items():
            file = io.BytesIO()
            try:
                torch.save(value, file)
                file.seek(0)
                torch.load(file, weights_only=True)
            except Exception as error:  # `pickle` can raise any exception
                raise ValueError(
                    f"the hyperparameter {name} of {type(holder).__name__} is a {type(value).__name__}, but a "
                    "checkpoint can hold plain values and tensors only: use "
                    f"save_hyperparameters(ignore=[{name!r}])"
                ) from error


def check_configured(
    module: pl.LightningModule, optimizers: Sequence[Optimizer], schedulers: Iterable[LRSchedulerConfig]
) -> None:
    """Check what `configure_optimizers` of a module returned.

    Raises:
        ValueError: If the optimizer has none of the module's parameters, or a scheduler waits for a metric.
    """
    kind = type(module).__name__
    own = {id(parameter) for parameter in module.parameters()}
    if not any(id(parameter) in own for group in optimizers[0].param_groups for parameter in group["params"]):
        raise ValueError(f"{kind}.configure_optimizers() returned no optimizer of the module's parameters")
    if waiting := [type(config.scheduler).__name__ for config in schedulers if config.reduce_on_plateau]:
        raise ValueError(
            f"{kind}.configure_optimizers() returned {waiting[0]}, which waits for a metric, but nodes are evaluated "
            "outside their local steps: use a scheduler without a metric"
        )
