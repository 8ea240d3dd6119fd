"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685): a frozen model, and small layers beside its linear layers.

The weights of the model become buffers, so that the adapters are its only parameters. All code that loops over
parameters (for nodes, messages, optimizers, checkpoints, noise) then handles only adapters. The frozen weights exist
once in a process, for any number of nodes, and they are neither sent nor stored.

An adapter consists of two children of the layer that it adapts, `lora_A` and `lora_B`. All other names stay those of
the model, and code that reads the weight of the layer still finds it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from worldlm.federation.seeds import derive_seed
from worldlm.models.blocks import find_blocks
from worldlm.topology.errors import join_names


@dataclass(frozen=True, kw_only=True)  # without slots, since jsonargparse reads `vars` of a default
class Lora:
    """Adapters of a frozen model of transformers: `W x + (alpha / rank) B A x`, where only A and B are trained.

    A is drawn as in the paper's code (Kaiming uniform), and B starts at 0, so that a new adapter changes nothing.
    Without `rank` it describes no adapters: see `is_given`.

    Raises:
        ValueError: If `rank` is missing or below 1, `alpha` is not above 0, or `targets` is not a regular expression.
    """

    rank: int | None = None
    """Rows of A and columns of B, at least 1. All nodes have the same."""

    alpha: float = 16.0
    """Scale of the adapters, above 0: their output is multiplied with `alpha / rank`."""

    targets: str | None = None
    """Regular expression found anywhere in the name of a linear layer (`re.search`), such as `(q|v)_proj$`. By default,
    every linear layer in the blocks is adapted."""

    freeze_a: bool = False
    """Whether A is frozen and only B is trained (FFA-LoRA, arXiv 2403.12313). A is then the same at all nodes and in
    all runs, because it is drawn from the name of its layer."""

    def __post_init__(self) -> None:
        if self.rank is None:
            if (self.alpha, self.targets, self.freeze_a) != (Lora.alpha, Lora.targets, Lora.freeze_a):
                raise ValueError("lora.rank is missing: it must be a whole number of at least 1, such as 8")
            return
        if self.rank < 1:
            raise ValueError(f"lora.rank is {self.rank}: it must be at least 1")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"lora.alpha is {self.alpha}: it must be a number above 0")
        try:
            re.compile(self.targets or "")
        except re.error as error:
            raise ValueError(f"lora.targets {self.targets!r} is not a regular expression: {error}") from error

    @property
    def is_given(self) -> bool:
        """Whether it describes adapters."""
        return self.rank is not None

    @property
    def scale(self) -> float:
        """What the output of an adapter is multiplied with."""
        assert self.rank is not None, "there are adapters"
        return self.alpha / self.rank

    def check(self, is_transformer: bool, init_from: str | None) -> None:
        """Check that there is a model to adapt.

        Raises:
            ValueError: If the model is not one of transformers, or has no weights.
        """
        if not is_transformer:
            raise ValueError("lora needs a model of transformers: write model.transformer in place of architecture")
        if init_from is None:
            raise ValueError("lora needs init_from: the Hugging Face folder with the weights that it freezes")

    def differences(self, saved: Mapping[str, Any]) -> list[str]:
        """Return how the saved adapters of a model differ, one line each.

        Args:
            saved: The `hyper_parameters` of a checkpoint.
        """
        before, now = saved.get("lora"), asdict(self)
        if (before is None) == self.is_given:
            return [f"the saved model has {'no' if before is None else 'only'} adapters (lora), unlike this one"]
        return [
            f"lora.{name} is {before.get(name)} in the saved model, but {value} in this one"
            for name, value in now.items()
            if before is not None and before.get(name) != value
        ]


def lora_of(hyper_parameters: Mapping[str, Any]) -> Lora:
    """Return the description of the adapters in the `hyper_parameters` of a checkpoint."""
    return Lora(**(hyper_parameters.get("lora") or {}))


def adapt_(model: nn.Module, lora: Lora) -> list[str]:
    """Freeze a model and add adapters to its linear layers, in place.

    Args:
        model: A model of transformers.
        lora: Which layers are adapted, and how.

    Returns:
        The names of the frozen weights of the model; one of the names of a tied weight.

    Raises:
        ValueError: If `lora.targets` matches no linear layer in the blocks.
    """
    assert lora.rank is not None, "there are adapters"
    layers, names = adapted_layers(model, lora), [name for name, _ in model.named_parameters()]
    freeze_(model)
    for name, layer in layers.items():
        num_in, num_out = sizes_of(layer)
        layer.lora_A = nn.Linear(num_in, lora.rank, bias=False)
        layer.lora_B = nn.Linear(lora.rank, num_out, bias=False)
        nn.init.kaiming_uniform_(layer.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(layer.lora_B.weight)
        if lora.freeze_a:
            layer.lora_A.weight.data.copy_(frozen_a(name, lora.rank, num_in))
            freeze_(layer.lora_A)
        layer.register_forward_hook(partial(_add_adapter, scale=lora.scale))
    return names


def _add_adapter(layer: Any, inputs: tuple[Tensor, ...], output: Tensor, *, scale: float) -> Tensor:
    return torch.add(output, layer.lora_B(layer.lora_A(inputs[0])), alpha=scale)


def freeze_(module: nn.Module) -> None:
    """Make the parameters of a module, in place, buffers that are in no state dict. Tied weights stay tied."""
    frozen: dict[int, Tensor] = {}
    for layer in module.modules():
        for name, parameter in [*layer.named_parameters(recurse=False, remove_duplicate=False)]:
            delattr(layer, name)
            tensor = frozen.setdefault(id(parameter), parameter.detach())
            layer.register_buffer(name, tensor, persistent=False)


def frozen_a(name: str, rank: int, num_in: int) -> Tensor:
    """Return the frozen A of a layer, float32 [rank, num_in] on the CPU, which depends on nothing but these arguments.

    Args:
        name: The layer, in the model of transformers.
        rank: Its rows.
        num_in: Inputs of the layer.
    """
    generator = torch.Generator().manual_seed(derive_seed(0, "lora_A", name))
    weight = torch.empty(rank, num_in, device="cpu")
    return nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)


def adapted_layers(model: nn.Module, lora: Lora) -> dict[str, Any]:
    """Return the layers of a model without adapters that `adapt_` adapts, by name.

    Raises:
        ValueError: If `lora.targets` matches no linear layer in the blocks.
    """
    inside = f"{find_blocks(model, 'lora')[0]}."
    linear = {name: layer for name, layer in model.named_modules() if name.startswith(inside) and _is_linear(layer)}
    found = {name: layer for name, layer in linear.items() if re.search(lora.targets or "", name)}
    if not found:
        raise ValueError(_why_none(model, lora, linear))
    return found


def _is_linear(layer: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D  # the linear layer of GPT-2

    return isinstance(layer, nn.Linear | Conv1D)


def is_transposed(layer: Any) -> bool:
    """Return whether the weight of a linear layer is [inputs, outputs], as in GPT-2, and not [outputs, inputs]."""
    return not isinstance(layer, nn.Linear)


def sizes_of(layer: Any) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of a linear layer."""
    first, second = layer.weight.shape
    return (first, second) if is_transposed(layer) else (second, first)


def _why_none(model: nn.Module, lora: Lora, linear: Mapping[str, nn.Module]) -> str:
    others = [name for name, _ in model.named_parameters() if re.search(lora.targets or "", name)]
    if others:
        return f"lora.targets {lora.targets!r} matches {others[0]}, but only linear layers in the blocks can be adapted"
    kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in linear))
    return f"lora.targets {lora.targets!r} matches no linear layer in the blocks; there are {join_names(kinds, 10)}"


def once_per_tensor(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a function that converts each tensor once, so that tied buffers stay tied when a module is moved."""
    converted: dict[int, tuple[Tensor, Tensor]] = {}  # with the tensor itself, whose id is not used again

    def convert(tensor: Tensor) -> Tensor:
        if id(tensor) not in converted:
            converted[id(tensor)] = tensor, function(tensor)
        return converted[id(tensor)][1]

    return convert
