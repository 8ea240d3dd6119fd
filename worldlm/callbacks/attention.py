"""Attention over key layers, in aggregation and on download."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

from worldlm.callbacks.averaging import Averaging
from worldlm.federation.attention import Attended, Granularity, KeyValue, Similarity, attend, attention_weights
from worldlm.federation.averaging import move_towards_, weighted_mean
from worldlm.federation.messages import Download, Upload
from worldlm.federation.parameters import Part, copy_
from worldlm.federation.schedule import Rate, check_rate, in_round
from worldlm.rounds import Context, RoundCallback
from worldlm.topology import Topology
from worldlm.topology.errors import check_choice
from worldlm.trainer import FederationCallback

Query: TypeAlias = Literal["own", "mean"]


class AttentionAggregation(FederationCallback):
    """Merges key and value layers by attention over the keys of the candidates (arXiv 2405.14446).

    Upward, a federation attends over its participants' uploads. Downward, a child attends over its own layers and its
    parent's. Each delivered residual is one more candidate and is used once: a leaf uses it on download, a federation
    when it aggregates.

    Args:
        temperature: Temperature of the softmax, above 0. A small one selects few candidates, a large one averages them.
        query: Query of a federation, upward: the `mean` of its participants' keys, or its `own` keys of the last round.
            With `own`, the child with the largest weight dominates the next query, so its weight tends to grow.
        similarity: `cosine`, `dot` or `distance`, between the changes since the common initial keys.
        granularity: One weight per candidate for the whole `model`, or one per `block`.
        downward: Whether children attend to their parent's layers.
        self_similarity: Similarity of a node to itself in downward attention. None computes it: with `cosine` it is 1,
            and no parent comes near it. With a smaller value a node follows a parent whose similarity is larger than
            this, and keeps its own layers if it is smaller.
        download_rate: How far a federation moves on download from its own layers to the attended ones; above 0 and at
            most 1, which replaces its own. Two values are the rates of the first and of the last round.
        leaf_download_rate: The same for a leaf.

    Raises:
        ValueError: If an argument is out of its range, or a rate changes over a run without a last round. Also if an
            attentive `Averaging` is listed after this callback, which would then use keys that have already moved, or
            if there is no downward attention for it.
    """

    parts: frozenset[Part] = frozenset({"keys", "values"})

    def __init__(
        self,
        temperature: float = 0.1,
        query: Query = "own",
        similarity: Similarity = "cosine",
        granularity: Granularity = "model",
        downward: bool = True,
        self_similarity: float | None = None,
        download_rate: Rate = 1.0,
        leaf_download_rate: Rate = 1.0,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        check_choice("query", query, get_args(Query))
        check_choice("similarity", similarity, get_args(Similarity))
        check_choice("granularity", granularity, get_args(Granularity))
        self.temperature = temperature
        self.query: Query = query
        self.similarity: Similarity = similarity
        self.granularity: Granularity = granularity
        self.downward = downward
        self.self_similarity = self_similarity
        self.download_rate = check_rate("download_rate", download_rate)
        self.leaf_download_rate = check_rate("leaf_download_rate", leaf_download_rate)

    def check_method(self, callbacks: Sequence[RoundCallback], topology: Topology) -> None:
        if not self.downward and any(isinstance(other, Averaging) and other.attentive for other in callbacks):
            raise ValueError("an attentive Averaging needs an AttentionAggregation with downward: true")

    def must_follow(self, other: RoundCallback) -> str:
        if isinstance(other, Averaging) and other.attentive:  # it needs the keys before they change
            return "list an attentive Averaging before AttentionAggregation: it needs the keys before they change"
        return ""

    def parent_weight(self, context: Context, download: Download) -> float:
        """Return the attention weight of the parent's keys against the node's own keys, in (0, 1)."""
        query = context.part("keys")
        by_block = attention_weights(query, [query, download.parts["keys"]], **self._options(context, down=True))
        return sum(parent for _, parent in by_block.values()) / len(by_block)

    def _options(self, context: Context, *, down: bool) -> dict[str, Any]:
        """Return the keyword arguments of upward or downward attention at a node."""
        return {
            "reference": {name: context.world.reference[name] for name in context.part("keys")},
            "temperature": self.temperature,
            "similarity": self.similarity,
            "granularity": self.granularity,
            "self_similarity": self.self_similarity if down else None,
        }

    def on_receive(self, context: Context, download: Download) -> None:
        candidates = {"self": KeyValue(context.part("keys"), context.part("values"))}
        if self.downward:
            candidates["parent"] = KeyValue(download.parts["keys"], download.parts["values"])
        leaf = context.node.is_leaf
        if leaf:
            candidates |= self._residuals(context)
        if len(candidates) > 1:
            attended = attend(context.part("keys"), [*candidates.values()], **self._options(context, down=True))
            rate = in_round(self.leaf_download_rate if leaf else self.download_rate, context.round, context.num_rounds)
            move_towards_(context.state.parameters, {**attended.keys, **attended.values}, rate)
            self._log(context, "attention_down", candidates, attended)

    def on_aggregate(self, context: Context, uploads: list[Upload]) -> None:
        candidates = {upload.node: KeyValue(upload.parts["keys"], upload.parts["values"]) for upload in uploads}
        residuals = self._residuals(context)
        query = context.part("keys")
        if self.query == "mean":
            query = weighted_mean([candidate.keys for candidate in candidates.values()], [1.0] * len(candidates))
        attended = attend(query, [*candidates.values(), *residuals.values()], **self._options(context, down=False))
        copy_(context.state.parameters, {**attended.keys, **attended.values})
        weights = dict(zip(candidates, attended.mean_weights, strict=False))
        context.state.attention = weights
        self._log(context, "attention", {**candidates, **residuals}, attended)

    @staticmethod
    def _residuals(context: Context) -> dict[str, KeyValue]:
        residuals, context.state.inbox = context.state.inbox, []
        return {
            f"residual_{i}_{residual.origin}": KeyValue(residual.keys, residual.values)
            for i, residual in enumerate(residuals)
        }

    @staticmethod
    def _log(context: Context, tag: str, names: dict[str, Any], attended: Attended) -> None:
        weights = zip(names, attended.mean_weights, strict=True)
        scalars = {f"{context.node.name}/{tag}/{name}": weight for name, weight in weights}
        context.log(scalars)
