"""Attention over key layers, upward and downward."""

from typing import Any, Literal, TypeAlias

from worldlm.callbacks.scalars import log_scalars
from worldlm.federation.attention import Attended, Granularity, KeyValue, Similarity, attend
from worldlm.federation.averaging import weighted_mean
from worldlm.federation.messages import Download, Upload
from worldlm.federation.parameters import Part, Tensors, copy_
from worldlm.loop import Context, FederationCallback, WorldTrainer

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
        similarity: `cosine` or `dot` of what was learnt since the common initial keys.
        granularity: One weight per candidate for the whole `model`, or one per `block`.
        downward: Whether children attend to their parent's layers.

    Raises:
        ValueError: If an argument is out of its range.
    """

    parts: frozenset[Part] = frozenset({"keys", "values"})

    def __init__(
        self,
        temperature: float = 0.1,
        query: Query = "own",
        similarity: Similarity = "cosine",
        granularity: Granularity = "model",
        downward: bool = True,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        if query not in ("own", "mean"):
            raise ValueError(f"query must be own or mean, got {query!r}")
        if similarity not in ("cosine", "dot"):
            raise ValueError(f"similarity must be cosine or dot, got {similarity!r}")
        if granularity not in ("model", "block"):
            raise ValueError(f"granularity must be model or block, got {granularity!r}")
        self.temperature = temperature
        self.query: Query = query
        self.similarity: Similarity = similarity
        self.granularity: Granularity = granularity
        self.downward = downward

    def _attend(self, context: Context, query: Tensors, candidates: list[KeyValue]) -> Attended:
        reference = context.world.reference
        attended = attend(
            query,
            candidates,
            {name: reference[name] for name in query},
            temperature=self.temperature,
            similarity=self.similarity,
            granularity=self.granularity,
        )
        copy_(context.state.parameters, attended.keys)
        copy_(context.state.parameters, attended.values)
        return attended

    def on_receive(self, trainer: WorldTrainer, context: Context, download: Download) -> None:
        candidates = {"self": KeyValue(context.part("keys"), context.part("values"))}
        if self.downward:
            candidates["parent"] = KeyValue(download.parts["keys"], download.parts["values"])
        if context.node.is_leaf:
            candidates |= self._residuals(context)
        if len(candidates) > 1:
            attended = self._attend(context, context.part("keys"), [*candidates.values()])
            self._log(trainer, context, "attention_down", candidates, attended)

    def on_aggregate(self, trainer: WorldTrainer, context: Context, uploads: list[Upload]) -> None:
        candidates = {one.node: KeyValue(one.parts["keys"], one.parts["values"]) for one in uploads}
        residuals = self._residuals(context)
        query = context.part("keys")
        if self.query == "mean":
            query = weighted_mean([one.keys for one in candidates.values()], [1.0] * len(candidates))
        attended = self._attend(context, query, [*candidates.values(), *residuals.values()])
        weights = dict(zip(candidates, attended.mean_weights, strict=False))
        context.state.attention = weights
        self._log(trainer, context, "attention", {**candidates, **residuals}, attended)

    @staticmethod
    def _residuals(context: Context) -> dict[str, KeyValue]:
        inbox, context.state.inbox = context.state.inbox, []
        return {f"residual_{i}_{one.origin}": KeyValue(one.keys, one.values) for i, one in enumerate(inbox)}

    @staticmethod
    def _log(trainer: WorldTrainer, context: Context, tag: str, names: dict[str, Any], attended: Attended) -> None:
        weights = zip(names, attended.mean_weights, strict=True)
        scalars = {f"{context.node.name}/{tag}/{name}": weight for name, weight in weights}
        log_scalars(trainer, scalars, context.round)
