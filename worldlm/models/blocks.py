"""Finds the blocks of a model, and the attention in them, by the names and the order of its layers."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

_ATTENTION = re.compile(r"attn|attention")
_NORM = re.compile(r"norm|^ln")
_BEFORE_ATTENTION = ("input_layernorm", "ln_1", "norm_1")
"""Names of the norm before attention."""


def patterns_of_last_blocks(model: nn.Module, number: int, prefix: str) -> tuple[list[str], list[str]]:
    """Return patterns of the last blocks: of their attention as keys, and of the rest of them as values.

    The norm before attention belongs to it. The norms after the last block are values too. If the model has adapters,
    only these have parts, and one of the lists is empty if they are all in the attention, or all outside of it.

    Args:
        model: Has one outermost list of blocks.
        number: How many blocks, at least 1.
        prefix: Precedes the names of the model's parameters.

    Raises:
        ValueError: If there is not one list of blocks, it has too few, no attention is found in them, or they have no
            parameters.
    """
    name, blocks = find_blocks(model, "split.last_blocks")
    if number >= len(blocks):
        raise ValueError(
            f"split.last_blocks is {number}: the model has {len(blocks)} blocks, and at least one must be left"
        )
    layers = [layer for layer, module in blocks[-1].named_children() if _has_weights(module)]
    attention = [layer for layer in layers if _ATTENTION.search(layer) and not _NORM.search(layer)]
    if not attention:
        raise ValueError(f"split.last_blocks finds no attention among the layers {', '.join(layers)}: write patterns")
    attention += [layer for layer in layers if layer in _BEFORE_ATTENTION]
    indices = "|".join(str(i) for i in range(len(blocks) - number, len(blocks)))
    block = rf"^{re.escape(prefix + name)}\.({indices})\."
    names = [prefix + parameter for parameter, _ in model.named_parameters()]
    keys = _used([rf"{block}{re.escape(layer)}\." for layer in attention], names)
    left = [parameter for parameter in names if not any(re.search(key, parameter) for key in keys)]
    values = _used([block, *(rf"^{re.escape(prefix + norm)}\." for norm in _norms_outside(model, name))], left)
    if not keys and not values:
        raise ValueError(f"split.last_blocks is {number}: the last {number} blocks have no adapters")
    return keys, values


def _has_weights(module: nn.Module) -> bool:
    return any(True for tensors in (module.parameters(), module.buffers()) for _ in tensors)


def _used(patterns: list[str], names: list[str]) -> list[str]:
    return [pattern for pattern in patterns if any(re.search(pattern, name) for name in names)]


def find_blocks(model: nn.Module, setting: str) -> tuple[str, nn.ModuleList]:
    """Return the one outermost list of blocks of a model, and its name.

    Args:
        model: The model.
        setting: The setting that needs the blocks, for the error.

    Raises:
        ValueError: If there is not one list of blocks.
    """
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outermost = [
        (name, module) for name, module in lists if not any(name.startswith(f"{other}.") for other, _ in lists)
    ]
    if len(outermost) != 1:
        raise ValueError(f"{setting} needs a model with one list of blocks, but this has {len(outermost)}")
    return outermost[0]


def _norms_outside(model: Any, blocks: str) -> list[str]:
    """Return the names of the norms outside of the blocks."""
    owners = dict.fromkeys(
        name.rpartition(".")[0] for name, _ in model.named_parameters() if not name.startswith(f"{blocks}.")
    )
    return [owner for owner in owners if _NORM.search(owner.rpartition(".")[2])]
