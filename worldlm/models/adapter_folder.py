"""Folders of adapters as peft reads them, and models with adapters added in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldlm.models.hub import is_hub_name
from worldlm.models.hugging_face import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from worldlm.models.lora import Lora, adapted_layers, frozen_a, is_transposed, sizes_of
from worldlm.models.transformer import PREFIX, Transformer

_PEFT_PREFIX = "base_model.model."
"""Prefix of the names of peft, before those of transformers."""


def write_adapter(
    folder: Path, architecture: Transformer, lora: Lora, weights: Mapping[str, Tensor], base: str
) -> None:
    """Write adapters, so that `peft.PeftModel.from_pretrained` can open the folder.

    Args:
        folder: An empty folder.
        architecture: The model that is adapted.
        lora: Its adapters.
        weights: By the names of the module's parameters.
        base: Where the frozen weights are, a folder or `owner/name@revision`; peft finds them by it.
    """
    from safetensors.torch import save_file

    layers = _layers(architecture, lora)
    repository, _, revision = base.partition("@") if is_hub_name(base) else (base, "", "")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": repository,
        "revision": revision or None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(layers),
        "fan_in_fan_out": any(map(is_transposed, layers.values())),
        "inference_mode": True,
    }
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        a, b = _matrices(name, layer, lora, weights)
        tensors |= {f"{_PEFT_PREFIX}{name}.lora_A.weight": a, f"{_PEFT_PREFIX}{name}.lora_B.weight": b}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / ADAPTER_WEIGHTS)


def merge_adapters(
    architecture: Transformer, lora: Lora, weights: Mapping[str, Tensor], base: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the weights of a model with its adapters added in: `W + (alpha / rank) B A`.

    Args:
        architecture: The model that is adapted.
        lora: Its adapters.
        weights: The adapters, by the names of the module's parameters.
        base: The frozen weights, by the names that a module without adapters has.
    """
    merged = dict(base)
    for name, layer in _layers(architecture, lora).items():
        a, b = _matrices(name, layer, lora, weights)
        change = b @ a
        key = f"{PREFIX}{name}.weight"
        merged[key] = torch.add(base[key], change.T if is_transposed(layer) else change, alpha=lora.scale)
    return merged


def _layers(architecture: Transformer, lora: Lora) -> dict[str, Any]:
    """Return the adapted layers by name, without weights."""
    with torch.device("meta"):
        return adapted_layers(architecture.build(), lora)


def _matrices(name: str, layer: Any, lora: Lora, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return A and B of a layer, [rank, inputs] and [outputs, rank]."""
    assert lora.rank is not None, "there are adapters"
    b = weights[f"{PREFIX}{name}.lora_B.weight"]
    if lora.freeze_a:
        return frozen_a(name, lora.rank, sizes_of(layer)[0]), b
    return weights[f"{PREFIX}{name}.lora_A.weight"], b
