"""FedAMP: the parent sends each child a mixture of models computed for that child."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypedDict

from worldlm.federation.averaging import weighted_mean
from worldlm.federation.messages import Download, Upload, joined
from worldlm.federation.mixture import mixture_weights
from worldlm.federation.parameters import PARTS, Part, Tensors, clone, copy_
from worldlm.federation.state import NodeState
from worldlm.rounds import Context, RoundCallback, World
from worldlm.topology import Node, Topology
from worldlm.topology.changes import Changes
from worldlm.trainer import FederationCallback


class _Memory(TypedDict, total=False):
    models: dict[str, Tensors]
    tokens: dict[str, int]
    weights: dict[str, dict[str, float]]


class FedAMP(FederationCallback):
    """Sends every child of a star its own mixture of the last uploads of all children (Huang et al., arXiv 2007.03797).

    Nearer models get larger weights, see `worldlm.federation.mixture.mixture_weights`. The child replaces its whole
    model by the mixture. In the paper the clients are also pulled towards it: add `Proximal` for that term.

    A child that has never uploaded gets the federation's own model. That is the mean of the last uploads, weighted by
    tokens, or the federation's own mixture if the federation holds data. FedAMP keeps one more model per child in
    memory and in checkpoints, and another one per child while messages are in flight.

    Args:
        self_weight: Weight of a child's own last upload in its mixture; at least 0 and below 1.
        sigma: Squared distance, relative to its mean over all pairs, at which a weight falls by a factor of e; above 0.

    Raises:
        ValueError: If an argument is out of its range, or the topology is not a star.
    """

    parts: frozenset[Part] = frozenset(PARTS)
    memory_schema = _Memory

    def __init__(self, self_weight: float = 0.5, sigma: float = 1.0) -> None:
        if not 0 <= self_weight < 1:
            raise ValueError(f"self_weight must be at least 0 and below 1, got {self_weight}")
        if not 0 < sigma < float("inf"):
            raise ValueError(f"sigma must be above 0 and finite, got {sigma}")
        self.self_weight = self_weight
        self.sigma = sigma

    def check_method(self, callbacks: Sequence[RoundCallback], topology: Topology) -> None:
        if topology.depth != 2:
            raise ValueError(
                f"FedAMP needs a star (a root and its leaves), but {topology.name} has {topology.depth} levels"
            )

    def on_topology_change(self, world: World, changes: Changes, states: Mapping[str, NodeState]) -> None:
        for child, parent in changes.parted:
            for by_child in self.memory(states[parent]).values():
                by_child.pop(child, None)
        for parent in {parent for _, parent in changes.parted}:
            memory = self.memory(states[parent])
            if memory.get("models"):
                memory["weights"] = self._weights(memory["models"])

    def on_download(self, context: Context, child: Node, download: Download) -> Download:
        memory = self.memory(context.state)
        if child.name not in memory.get("weights", {}):
            return download
        mixture = _mix(memory["models"], memory["weights"][child.name])
        parts = {part: {name: mixture[name] for name in tensors} for part, tensors in download.parts.items()}
        return replace(download, parts=parts)

    def on_receive(self, context: Context, download: Download) -> None:
        for tensors in download.parts.values():
            copy_(context.state.parameters, tensors)

    def on_aggregate(self, context: Context, uploads: list[Upload]) -> None:
        memory = self.memory(context.state)
        models, tokens = memory.setdefault("models", {}), memory.setdefault("tokens", {})
        for upload in uploads:
            models[upload.node], tokens[upload.node] = clone(joined(upload.parts)), upload.num_tokens
        weights = memory["weights"] = self._weights(models)
        copy_(context.state.parameters, _mix(models, weights.get(context.node.name, tokens)))
        scalars = {f"{name}/mixture/{other}": weight for name, row in weights.items() for other, weight in row.items()}
        context.log(scalars)

    def _weights(self, models: Mapping[str, Tensors]) -> dict[str, dict[str, float]]:
        ordered = {name: models[name] for name in sorted(models)}
        return mixture_weights(ordered, self_weight=self.self_weight, sigma=self.sigma)


def _mix(models: Mapping[str, Tensors], weights: Mapping[str, float]) -> Tensors:
    names = sorted(models)
    return weighted_mean([models[name] for name in names], [weights[name] for name in names])
