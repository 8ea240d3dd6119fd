"""Weights of a federation's uploads by the privacy noise in them, for the callbacks that merge parts of the model."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from worldlm.federation.messages import Upload
from worldlm.federation.noise_weights import noise_of_mean, reliability, signal_square
from worldlm.federation.parameters import Part, Tensors, distance
from worldlm.rounds import Context
from worldlm.topology import Node


class Noise(TypedDict):
    """The privacy noise in the weights of a federation."""

    variance: float
    """Variance in each coordinate."""
    reliability: float
    """Share of the participants' tokens that counts, in (0, 1]."""
    num_nodes: float
    """Number of nodes with data whose updates it averages; each counts with its reliability."""


class Weighed(NamedTuple):
    """The weights of a federation's uploads."""

    weights: list[float]
    """Weight of every upload: its weight without noise times its reliability."""
    trust: list[float]
    """Reliability of every upload, in (0, 1]; 1 without noise."""
    ratios: list[float] | None
    """Expected squared norm of the noise in every upload, relative to that of an update without noise; None if no
    upload has noise."""
    shrinkage: float
    """How far the federation moves to the mean of the uploads, in (0, 1]; 1 without noise."""
    noise: Noise | None
    """The noise in the federation's weights after this; None if there is none and all uploads are reliable."""


def weigh(context: Context, uploads: Sequence[Upload], weights: Sequence[float], parts: Collection[Part]) -> Weighed:
    """Weigh the uploads of a federation by their noise, as `worldlm.federation.noise_weights` explains.

    Args:
        context: The federation, with the weights that its participants received.
        uploads: The uploads of its participants.
        weights: Their weights without noise.
        parts: The parts of the model that are merged with these weights.
    """
    nodes = [context.world.topology.nodes[upload.node] for upload in uploads]
    sizes = {part: sum(tensor.numel() for tensor in uploads[0].parts[part].values()) for part in parts}
    levels = [sum(upload.noise_variance.get(part, 0.0) * sizes[part] for part in parts) for upload in uploads]
    trust = [min(upload.reliability.get(part, 1.0) for part in parts) for upload in uploads]
    ratios, shrinkage, left = None, 1.0, 0.0
    if any(levels):
        squares = [distance(_tensors(upload, parts), context.state.parameters) ** 2 for upload in uploads]
        signal = signal_square(_products(weights, trust), squares, levels, [update_bound(node) for node in nodes])
        trust = _products(trust, [reliability(level, signal) for level in levels])
        ratios = [level / max(signal, 1e-9 * level) if level else 0.0 for level in levels]
    final = _products(weights, trust)
    if any(levels):
        left = noise_of_mean([weight / sum(final) for weight in final], levels)
        shrinkage = reliability(left, signal)
    elif min(trust) == 1.0:
        return Weighed(final, trust, None, 1.0, None)
    noise = Noise(
        variance=shrinkage**2 * left / sum(sizes.values()),
        reliability=sum(final) / sum(weights),
        num_nodes=sum(_products(trust, [num_merged(upload, context) for upload in uploads])),
    )
    return Weighed(final, trust, ratios, shrinkage, noise)


def shrunk(start: Mapping[str, Tensor], mean: Tensors, shrinkage: float) -> Tensors:
    """Return weights that have moved from `start` to the mean only as far as the noise allows; see `Weighed`."""
    if shrinkage == 1.0:
        return mean
    return {name: torch.lerp(start[name], tensor, shrinkage) for name, tensor in mean.items()}


def keep_noise(memory: dict[str, Any], weighed: Weighed) -> None:
    """Remember the noise in a federation's weights for its next upload and its downloads."""
    memory.pop("noise", None)
    if weighed.noise is not None:
        memory["noise"] = weighed.noise


def own_share(memory: Mapping[str, Any]) -> float:
    """Return how much of a federation's own weights is learnt and not noise, in [0, 1]: 1 if a node counts fully."""
    return min(1.0, memory["noise"]["num_nodes"]) if "noise" in memory else 1.0


def with_noise(upload: Upload, parts: Collection[Part], noise: Noise | None) -> Upload:
    """Add to an upload the noise in some of its parts."""
    if noise is None:
        return upload
    return replace(
        upload,
        noise_variance={**upload.noise_variance, **dict.fromkeys(parts, noise["variance"])},
        reliability={**upload.reliability, **dict.fromkeys(parts, noise["reliability"])},
    )


def num_merged(upload: Upload, context: Context) -> int:
    """Return how many nodes with data an upload averages over: one, if it is the federation's own fit."""
    node = context.world.topology.nodes[upload.node]
    return 1 if node.name == context.node.name else num_data_nodes(node)


def num_data_nodes(node: Node) -> int:
    """Return how many nodes train, among a node and those below it."""
    return sum(below.fits for below in node.walk())


def update_bound(node: Node) -> float:
    """Return a bound of the L2 norm of a node's update before its noise: the clip norm; infinite without one."""
    if node.settings.privacy is not None:
        return node.settings.privacy.clip_norm
    senders = [child for child in node.children if not child.listens]
    return math.inf if node.fits or not senders else max(map(update_bound, senders))


def _products(left: Sequence[float], right: Sequence[float]) -> list[float]:
    return [a * b for a, b in zip(left, right, strict=True)]


def _tensors(upload: Upload, parts: Collection[Part]) -> Tensors:
    return {name: tensor for part in parts for name, tensor in upload.parts[part].items()}
