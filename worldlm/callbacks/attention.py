"""Attention over key layers, upward and downward."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from worldlm.callbacks.averaging import Averaging
from worldlm.federation.attention import Attended, Granularity, KeyValue, Similarity, attend, attention_weights
from worldlm.federation.averaging import move_towards_, weighted_mean
from worldlm.federation.messages import Download, Upload
from worldlm.federation.parameters import Part, copy_
from worldlm.federation.schedule import Rate, check_rate, in_round
from worldlm.rounds import Context, RoundCallback
from worldlm.topology import Topology
from worldlm.trainer import FederationCallback

Query: TypeAlias = Literal["own", "mean"]


class AttentionAggregation(FederationCallback):
    """Lets every node attend over the key layers it meets, and take the keys and values that fit (arXiv 2405.14446).

    Upward, a federation attends over its participants' uploads; downward, a child over its own layers and its
    parent's. Delivered residuals are one more candidate each, once: at a leaf when it receives, at a federation when
    it aggregates.

    Args:
        temperature: Above 0; small is selective, large averages.
        query: What a federation asks with, upward: the `mean` of its participants' keys, or its `own` keys of the last
            round. Those are mostly the keys of the child that was heard most, which is then heard more and more.
        similarity: `cosine`, `dot` or `distance` of what was learnt since the common initial keys.
        granularity: One weight per candidate for the whole `model`, or one per `block`.
        downward: Whether children attend to their parent's layers.
        self_similarity: How like itself a node counts its own layers when it attends downward. By default as they are:
            with `cosine` that is 1, and nobody else comes near it, however much there is to learn. Less lets a node
            follow a parent that is more like it than this, and keep its own beside one that is less.
        download_rate: How far a federation moves, on download, from its own layers to what it attended to; above 0, at
            most 1, which takes it. Two are those of the first and of the last round.
        leaf_download_rate: The same for a leaf.

    Raises:
        ValueError: If an argument is out of its range, or a rate moves in a run without an end; or if an attentive
            `Averaging` comes after this, when the keys have moved, or there is no downward attention for it.
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
        if query not in ("own", "mean"):
            raise ValueError(f"query must be own or mean, got {query!r}")
        if similarity not in ("cosine", "dot", "distance"):
            raise ValueError(f"similarity must be cosine, dot or distance, got {similarity!r}")
        if granularity not in ("model", "block"):
            raise ValueError(f"granularity must be model or block, got {granularity!r}")
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
        if isinstance(other, Averaging) and other.attentive:  # it asks before the keys move
            return "an attentive Averaging must come before the AttentionAggregation that it asks"
        return ""

    def parent_weight(self, context: Context, download: Download) -> float:
        """Return the weight that a node's keys give to its parent's beside its own, in (0, 1)."""
        query = context.part("keys")
        by_block = attention_weights(query, [query, download.parts["keys"]], **self._how(context, down=True))
        return sum(parent for _, parent in by_block.values()) / len(by_block)

    def _how(self, context: Context, *, down: bool) -> dict[str, Any]:
        """Return how a node attends, upward or downward, as keyword arguments."""
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
            attended = attend(context.part("keys"), [*candidates.values()], **self._how(context, down=True))
            rate = in_round(self.leaf_download_rate if leaf else self.download_rate, context.round, context.num_rounds)
            move_towards_(context.state.parameters, {**attended.keys, **attended.values}, rate)
            self._log(context, "attention_down", candidates, attended)

    def on_aggregate(self, context: Context, uploads: list[Upload]) -> None:
        candidates = {one.node: KeyValue(one.parts["keys"], one.parts["values"]) for one in uploads}
        residuals = self._residuals(context)
        query = context.part("keys")
        if self.query == "mean":
            query = weighted_mean([one.keys for one in candidates.values()], [1.0] * len(candidates))
        attended = attend(query, [*candidates.values(), *residuals.values()], **self._how(context, down=False))
        copy_(context.state.parameters, {**attended.keys, **attended.values})
        weights = dict(zip(candidates, attended.mean_weights, strict=False))
        context.state.attention = weights
        self._log(context, "attention", {**candidates, **residuals}, attended)

    @staticmethod
    def _residuals(context: Context) -> dict[str, KeyValue]:
        inbox, context.state.inbox = context.state.inbox, []
        return {f"residual_{i}_{one.origin}": KeyValue(one.keys, one.values) for i, one in enumerate(inbox)}

    @staticmethod
    def _log(context: Context, tag: str, names: dict[str, Any], attended: Attended) -> None:
        weights = zip(names, attended.mean_weights, strict=True)
        scalars = {f"{context.node.name}/{tag}/{name}": weight for name, weight in weights}
        context.log(scalars)
