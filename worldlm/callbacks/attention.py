"""Attention over key layers: each child downloads a mixture of its own."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypedDict, runtime_checkable

import torch

from worldlm.callbacks.averaging import participant_weight, row_shares, weighed_mean
from worldlm.callbacks.noise import Noise, keep_noise, num_data_nodes, own_share, shrunk, weigh, with_noise
from worldlm.callbacks.rates import download_rate
from worldlm.callbacks.sources import (
    OTHERS,
    SavedSource,
    average_of,
    largest,
    saved_uploads,
    smoothed_rows,
    source_of,
)
from worldlm.federation.attention import Mixture, Source, attend, mean_scale, similarity_matrix, without
from worldlm.federation.averaging import move_towards_
from worldlm.federation.messages import Download, Residual, Upload
from worldlm.federation.parameters import Part, Tensors, copy_
from worldlm.federation.schedule import Rate, check_rate, in_round
from worldlm.federation.state import NodeState
from worldlm.federation.token_rows import move_rows_towards_, own_row_weights
from worldlm.rounds import Context, World
from worldlm.topology import Node
from worldlm.topology.changes import Changes
from worldlm.trainer import FederationCallback

_MAX_SOURCES = 32
"""Participants of a federation up to which a mixture has all of them one by one."""

_NUM_NEAREST = 16
"""Participants that a mixture has one by one in a larger federation; the others are one source."""


class _Memory(TypedDict, total=False):
    uploads: dict[str, SavedSource]
    shares: dict[str, float]
    mean: Tensors
    above: SavedSource
    average: SavedSource
    nearest: dict[str, list[str]]
    noise: Noise


@runtime_checkable
class BringsResiduals(Protocol):
    """A callback that knows residuals from other branches, as `ResidualExchange` does."""

    def residuals_for(self, context: Context, child: Node, receiver: str) -> dict[str, list[Residual]]:
        """Return, by branch, the residuals from other branches that a mixture for a receiver may contain.

        Args:
            context: The federation.
            child: The child whose branch contains the receiver.
            receiver: The child itself, or a node below it.
        """

    def answer_to(self, context: Context, origin: str) -> Residual | None:
        """Return the answer that the federation received for a node below it, if any."""


class AttentionAggregation(FederationCallback):
    """Merges keys and values by attention, with a mixture for every child (arXiv 2405.14446; the formula is ours).

    A federation keeps the keys and values that its children uploaded last. For every child it attends over those of the
    other children, over residuals from other branches, and over what it received itself, with the child's keys as the
    query (`worldlm.federation.attention.attend`). The mixture has the size of one pair of keys and values, and replaces
    them in the child's download. The child moves towards it by its download rate, except for the weight of its own
    layers.

    The federation's own keys and values are the weighted mean of the uploads, as with `Averaging`. A child that has
    never uploaded, such as a listener, receives the average of all nodes. Uploads with privacy noise count less, see
    `worldlm.federation.noise_weights`.

    A federation keeps the keys and values of every child in memory and in checkpoints. With more than 32 participants,
    a mixture has the 16 that are most similar to the child one by one, and the average of the others as one source.

    Args:
        temperature: Temperature of the softmax, above 0. A small one selects few sources, a large one averages them.
            Two values are those of the first and of the last round.
        download_rate: How far a federation moves on download from its own layers to the mixture; above 0 and at most 1.
            Two values are the rates of the first and of the last round.
        leaf_download_rate: The same for a leaf.

    Raises:
        ValueError: If an argument is out of its range, or changes over a run without a last round.
    """

    parts: frozenset[Part] = frozenset({"keys", "values"})
    memory_schema = _Memory

    def __init__(
        self,
        temperature: float | tuple[float, float] = 0.2,
        download_rate: Rate = 1.0,
        leaf_download_rate: Rate = 1.0,
    ) -> None:
        ends = [*temperature] if isinstance(temperature, Sequence) else [temperature]
        if len(ends) not in (1, 2) or not all(isinstance(end, int | float) and end > 0 for end in ends):
            raise ValueError(f"temperature must be above 0, or two such numbers, first and last, got {temperature!r}")
        self.temperature: Rate = (ends[0], ends[1]) if len(ends) == 2 else ends[0]
        self.download_rate = check_rate("download_rate", download_rate)
        self.leaf_download_rate = check_rate("leaf_download_rate", leaf_download_rate)

    def on_topology_change(self, world: World, changes: Changes, states: Mapping[str, NodeState]) -> None:
        for child, parent in changes.parted:
            for key in ("uploads", "shares"):
                states[parent].memory.get(self.state_key, {}).get(key, {}).pop(child, None)
        for name in changes.moved:
            states[name].memory.get(self.state_key, {}).pop("above", None)
        for name in (name for name, node in world.topology.nodes.items() if node.is_leaf):
            states[name].memory.pop(self.state_key, None)

    # ------------------------------------------------------------------ down

    def on_download(self, context: Context, child: Node, download: Download) -> Download:
        saved = self.memory(context.state).get("uploads", {}).get(child.name)
        # to itself, a node counts fully, also if noise is added to what it sends
        query = None if saved is None else replace(Source(**saved), num_nodes=num_data_nodes(child))
        mixture = self.attend(context, child, child.name, query)
        if mixture is None:  # the federation knows this child only, or nothing yet
            (rows,) = smoothed_rows(row_shares(context, [None], self.parts))
            own = 1.0 if query else 0.0
            own_rows = {name: torch.full_like(shares, own) for name, shares in rows.items()}
            return replace(download, own_weight=own, row_shares=rows, own_row_weights=own_rows)
        source = mixture.source
        parts: dict[Part, Tensors] = {"keys": {**source.keys}, "values": {**source.values}}
        if source.num_nodes < 1.0:  # mostly privacy noise: the federation's own layers, which did not move by it
            parts = {part: shrunk(download.parts[part], parts[part], source.num_nodes) for part in parts}
        return replace(
            download,
            parts={**download.parts, **parts},
            own_weight=mixture.own_weight,
            row_shares={**source.row_shares},
            own_row_weights=_own_row_weights(query, mixture),
            num_nodes=source.num_nodes,
            scale=source.scale,
        )

    def attend(self, context: Context, child: Node, receiver: str, query: Source | None) -> Mixture | None:
        """Attend over all that a federation knows, except from the branch of one child.

        Args:
            context: The federation.
            child: The child whose branch contains the receiver.
            receiver: The child itself, or the origin of a residual that came from its branch.
            query: The keys and values of the receiver; None if they are unknown.

        Returns:
            The mixture; None if the federation knows nothing from elsewhere.
        """
        sources = self._sources(context, child, receiver)
        if not sources:
            return None
        temperature = in_round(self.temperature, context.round, context.num_rounds)
        mixture = attend(query, [*sources.values()], self._centre(context), temperature=temperature)
        rest = 1.0 - mixture.own_weight
        weights = {name: rest * weight for name, weight in zip(sources, mixture.weights, strict=True)}
        if query is not None and receiver == child.name:
            weights[receiver] = mixture.own_weight
        context.state.attention[receiver] = largest(weights)
        if receiver == child.name:
            context.log({f"{receiver}/own_weight": mixture.own_weight})
        return mixture

    def uploads(self, context: Context) -> dict[str, Source]:
        """Return the keys and values that the participants of a federation uploaded last, by name."""
        return {name: Source(**saved) for name, saved in self.memory(context.state).get("uploads", {}).items()}

    def shares(self, context: Context) -> dict[str, float]:
        """Return the share of each participant in the federation's last average, by name."""
        return dict(self.memory(context.state).get("shares", {}))

    def _siblings(self, context: Context, child: Node) -> dict[str, Source]:
        """Return what the other participants uploaded last, by name; in a large federation only that of the nearest."""
        memory = self.memory(context.state)
        saved = memory.get("uploads", {})
        if "average" not in memory:
            return {name: Source(**source) for name, source in saved.items() if name != child.name}
        average, nearest = Source(**memory["average"]), memory["nearest"].get(child.name, [])
        siblings = {name: Source(**saved[name]) for name in nearest if name in saved}
        inside = [*siblings.values(), *([Source(**saved[child.name])] if child.name in saved else [])]
        rest = without(average, [(source, source.num_nodes / average.num_nodes) for source in inside])
        return {**siblings, OTHERS: rest} if rest else siblings

    def _centre(self, context: Context) -> Tensors:
        """Return the average keys of all nodes, as far as a federation knows them: those below it, and from above."""
        memory, topology = self.memory(context.state), context.world.topology
        mean: Tensors = memory.get("mean") or {name: context.world.reference[name] for name in context.part("keys")}
        if "above" not in memory:
            return mean
        share = 1.0 - num_data_nodes(context.node) / num_data_nodes(topology.root)
        return {name: torch.lerp(tensor, memory["above"]["keys"][name], share) for name, tensor in mean.items()}

    def _sources(self, context: Context, child: Node, receiver: str) -> dict[str, Source]:
        """Return what a federation knows from outside the branch of a child, by the name of the node it comes from.

        A residual counts on its own, and no longer in the average of its branch.
        """
        memory, exchange = self.memory(context.state), context.find(BringsResiduals)  # type: ignore[type-abstract]
        uploads = self._siblings(context, child)
        above = Source(**memory["above"]) if "above" in memory else None
        climbed = exchange.residuals_for(context, child, receiver) if exchange else {}
        if exchange and (answer := exchange.answer_to(context, receiver)):
            above = source_of(answer)
        sources: dict[str, Source] = {}
        for name, upload in uploads.items():
            residuals = climbed.get(name, [])
            parts = [(source_of(residual), residual.share) for residual in residuals]
            rest = without(upload, parts) if parts else upload
            sources |= {name: rest} if rest else {}
            sources |= {residual.origin: source_of(residual) for residual in residuals}
        parent = context.world.topology.parent(context.node.name)
        return sources if above is None or parent is None else {**sources, parent.name: above}

    def on_receive(self, context: Context, download: Download) -> None:
        keys, values, memory = download.parts["keys"], download.parts["values"], self.memory(context.state)
        if context.node.children and download.num_nodes:
            memory["above"] = SavedSource(
                keys={**keys},
                values={**values},
                row_shares={**download.row_shares},
                num_nodes=download.num_nodes,
                scale=download.scale,
            )
        own, by_rows = own_share(memory), download.own_row_weights
        rate = download_rate(context, self.download_rate, self.leaf_download_rate, own)
        for name, own_weights in by_rows.items():
            move_rows_towards_(context.state.parameters[name], values[name], rate * (1.0 - own * own_weights))
        rate *= 1.0 - own * download.own_weight
        if rate:
            layers = {name: tensor for name, tensor in {**keys, **values}.items() if name not in by_rows}
            move_towards_(context.state.parameters, layers, rate)

    # ------------------------------------------------------------------ up

    def on_upload(self, context: Context, upload: Upload) -> Upload:
        memory = self.memory(context.state)
        if known := [*self.uploads(context).values()]:
            upload = replace(upload, scale=mean_scale(known))
        return with_noise(upload, self.parts, memory.get("noise"))

    def on_aggregate(self, context: Context, uploads: list[Upload]) -> None:
        memory, nodes = self.memory(context.state), context.world.topology.nodes
        weights = [participant_weight(nodes[upload.node], upload) for upload in uploads]
        weighed = weigh(context, uploads, weights, sorted(self.parts))
        rows = smoothed_rows(row_shares(context, uploads, self.parts))
        total = sum(weighed.weights)
        memory["shares"] = {upload.node: w / total for upload, w in zip(uploads, weighed.weights, strict=True)}
        memory.setdefault("uploads", {}).update(saved_uploads(context, uploads, weighed, rows))
        models = [{**upload.parts["keys"], **upload.parts["values"]} for upload in uploads]
        mean = weighed_mean(context, models, weighed, rows)
        memory["mean"] = {name: mean[name] for name in context.part("keys")}
        copy_(context.state.parameters, mean)
        keep_noise(memory, weighed)
        self._find_nearest(context)

    def _find_nearest(self, context: Context) -> None:
        """In a large federation, remember the average and, for each participant, who is most similar to it."""
        memory, uploads = self.memory(context.state), self.uploads(context)
        if len(uploads) <= _MAX_SOURCES:
            memory.pop("average", None)
            memory.pop("nearest", None)
            return
        names, sources = [*uploads], [*uploads.values()]
        scores = similarity_matrix(sources, self._centre(context)).fill_diagonal_(-math.inf)
        nearest = scores.topk(_NUM_NEAREST).indices.tolist()
        memory["nearest"] = {name: [names[i] for i in row] for name, row in zip(names, nearest, strict=True)}
        memory["average"] = average_of(sources)


def _own_row_weights(query: Source | None, mixture: Mixture) -> Tensors:
    others = mixture.source.row_shares
    own = others if query is None else query.row_shares
    return {name: own_row_weights(mixture.own_weight, own[name], others[name]) for name in others}
