"""Clustered averaging: children with similar updates share a model."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypedDict

from worldlm.callbacks.averaging import Averaging
from worldlm.callbacks.noise import Noise, Weighed, keep_noise, weigh
from worldlm.federation.clusters import agglomerate, update_similarities
from worldlm.federation.messages import Download, Upload
from worldlm.federation.parameters import PARTS, Part, Tensors, copy_
from worldlm.federation.schedule import Rate
from worldlm.federation.state import NodeState
from worldlm.rounds import Context, RoundCallback, World
from worldlm.topology import Node, Topology
from worldlm.topology.changes import Changes

log = logging.getLogger(__name__)


class _Memory(TypedDict, total=False):
    clusters: dict[str, int]
    models: dict[int, Tensors]
    noise_of_models: dict[int, Noise]
    noise: Noise


class ClusteredAveraging(Averaging):
    """Averages within clusters of the children of a star (FL+HC, Briggs et al., arXiv 2004.11791).

    Until `after_round` this is FedAvg. Then the federation clusters the updates of that round by their cosines, and
    from then on each child receives the average of its own cluster. The clusters do not change later. Rates, weights
    and `TokenRows` work as with `Averaging`.

    A child that did not take part in that round, or that joins later, receives the federation's own model until its
    first upload. It then enters the cluster whose difference from the federation's model is most similar to its update.
    The federation's own model is the average of all participants, or of its own cluster if it holds data. The
    federation keeps one model per cluster in memory and in checkpoints.

    Args:
        min_similarity: Two clusters are merged as long as the mean cosine between their members' updates is at least
            this; in [-1, 1]. At -1 there is one cluster.
        after_round: The round, from 1, whose updates are clustered; at least 1.
        parts: As for `Averaging`, and so are the other arguments.
        weights: As for `Averaging`.
        download_rate: As for `Averaging`.
        leaf_download_rate: As for `Averaging`.

    Raises:
        ValueError: If an argument is out of its range, or the topology is not a star.
    """

    enforces = frozenset({"weight"})
    memory_schema: Any = _Memory

    def __init__(
        self,
        min_similarity: float = 0.3,
        after_round: int = 1,
        parts: Sequence[Part] = PARTS,
        weights: Literal["num_tokens", "uniform"] = "num_tokens",
        download_rate: Rate = 1.0,
        leaf_download_rate: Rate = 1.0,
    ) -> None:
        super().__init__(parts, weights, download_rate=download_rate, leaf_download_rate=leaf_download_rate)
        if not -1 <= min_similarity <= 1:
            raise ValueError(f"min_similarity must be in [-1, 1], got {min_similarity}")
        if after_round < 1:
            raise ValueError(f"after_round must be at least 1, got {after_round}")
        self.min_similarity = min_similarity
        self.after_round = after_round

    def check_method(self, callbacks: Sequence[RoundCallback], topology: Topology) -> None:
        if topology.depth != 2:
            raise ValueError(
                f"ClusteredAveraging needs a star (a root and its leaves), but {topology.name} has {topology.depth} "
                "levels"
            )

    def on_topology_change(self, world: World, changes: Changes, states: Mapping[str, NodeState]) -> None:
        super().on_topology_change(world, changes, states)
        for child, parent in changes.parted:
            memory = states[parent].memory.get(self.state_key, {})
            number = memory.get("clusters", {}).pop(child, None)
            if number is not None and number not in memory["clusters"].values():
                memory["models"].pop(number, None)
                memory["noise_of_models"].pop(number, None)

    def on_download(self, context: Context, child: Node, download: Download) -> Download:
        memory = self.memory(context.state)
        if child.name not in memory.get("clusters", {}):
            return super().on_download(context, child, download)
        number = memory["clusters"][child.name]
        model, noise = memory["models"][number], memory["noise_of_models"].get(number)
        known = 1.0 if noise is None else min(noise["num_nodes"], 1.0)
        merged = {part: {name: model[name] for name in download.parts[part]} for part in self.parts}
        parts = {part: merged.get(part, tensors) for part, tensors in download.parts.items()}
        return replace(download, parts=parts, reliability=min(download.reliability, known))

    def on_aggregate(self, context: Context, uploads: list[Upload]) -> None:
        clusters, memory, own = self._assign(context, uploads), self.memory(context.state), context.state.parameters
        models, noises = memory.setdefault("models", {}), memory.setdefault("noise_of_models", {})
        mean, weighed = self._average(context, own, uploads)
        keep_noise(memory, weighed)
        for number in sorted(set(clusters.values())):
            members = [upload for upload in uploads if clusters[upload.node] == number]
            if not members:
                continue
            models[number], weighed = self._average(context, own | models.get(number, {}), members)
            noises.pop(number, None)
            if weighed.noise is not None:
                noises[number] = weighed.noise
        copy_(own, models[clusters[context.node.name]] if context.node.name in clusters else mean)
        context.log({f"{upload.node}/cluster": clusters[upload.node] for upload in uploads if clusters})

    def _assign(self, context: Context, uploads: list[Upload]) -> dict[str, int]:
        """Return the cluster of every participant; none before the round whose updates are clustered."""
        memory, start = self.memory(context.state), context.state.parameters
        if context.round + 1 < self.after_round:
            return {}
        if not memory.get("clusters"):
            memory["clusters"] = self._cluster(context, uploads)
        clusters: dict[str, int] = memory["clusters"]
        for upload in (upload for upload in uploads if upload.node not in clusters):
            numbers = sorted(memory["models"])
            models = [memory["models"][number] for number in numbers]
            _, *similarities = update_similarities([self._tensors(upload), *models], start)[0]
            clusters[upload.node] = numbers[similarities.index(max(similarities))]
        return clusters

    def _cluster(self, context: Context, uploads: list[Upload]) -> dict[str, int]:
        names = [upload.node for upload in uploads]
        similarities = update_similarities([self._tensors(upload) for upload in uploads], context.state.parameters)
        numbers = agglomerate(similarities, self.min_similarity)
        for i, name in enumerate(names):
            context.log({f"{name}/similarity/{other}": similarities[i][j] for j, other in enumerate(names) if j != i})
        members = [[name for name, own in zip(names, numbers, strict=True) if own == k] for k in sorted(set(numbers))]
        log.info(
            "round %d: clusters of %s: %s", context.round + 1, context.node.name, "; ".join(map(", ".join, members))
        )
        return dict(zip(names, numbers, strict=True))

    def _average(self, context: Context, start: Tensors, uploads: list[Upload]) -> tuple[Tensors, Weighed]:
        """Return the mean of uploads, and how they are weighed; `start` are the weights that the senders received."""
        nodes, around = context.world.topology.nodes, replace(context, state=replace(context.state, parameters=start))
        weights = [self._weight(nodes[upload.node], upload) for upload in uploads]
        weighed = weigh(around, uploads, weights, self.parts)
        return self.mean(around, uploads, weighed), weighed
