"""Selection, routing and delivery of residuals."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict

from worldlm.federation.attention import Similarity, similarities
from worldlm.federation.messages import (
    Download,
    Residual,
    SavedResidual,
    Upload,
    message_state,
    residual_from_state,
)
from worldlm.federation.parameters import Tensors, clone
from worldlm.federation.residuals import Route, is_allowed_at, refusal, route, select_residuals
from worldlm.federation.state import NodeState
from worldlm.rounds import Context, RoundCallback, World
from worldlm.topology import Node, Topology
from worldlm.topology.changes import Changes
from worldlm.trainer import FederationCallback

log = logging.getLogger(__name__)


class _Memory(TypedDict, total=False):
    children_keys: dict[str, Tensors]
    outbox: dict[str, list[SavedResidual]]
    climbing: list[SavedResidual]
    missed: list[SavedResidual]
    routes: dict[str, int]
    refusals: dict[str, int]


class ResidualExchange(FederationCallback):
    """Routes keys and values that fit their federation badly to a better one (arXiv 2405.14446; ALGORITHM section 5).

    After a federation has aggregated, it selects the (K, V) of the children with the smallest attention weights. These
    residuals travel towards the root with its uploads. The first ancestor with a more similar child on another branch
    sends the residual to that child with its next download. Each receiver passes it on while one of its children is
    more similar still. A residual for which the root finds no receiver is dropped.

    Args:
        num_residuals: Residuals that a federation sends per aggregation, at least 1.
        min_similarity: Similarity that a receiver must exceed.
        similarity: `cosine`, `dot` or `distance`, as in `AttentionAggregation`.

    Raises:
        ValueError: If `num_residuals` is below 1, or no callback of the recipe merges keys and uses the residuals.
    """

    enforces = frozenset({"residuals"})
    memory_schema = _Memory

    def __init__(self, num_residuals: int = 1, min_similarity: float = 0.0, similarity: Similarity = "cosine") -> None:
        if num_residuals < 1:
            raise ValueError(f"num_residuals must be at least 1, got {num_residuals}; remove the callback to send none")
        self.num_residuals = num_residuals
        self.min_similarity = min_similarity
        self.similarity: Similarity = similarity

    def check_method(self, callbacks: Sequence[RoundCallback], topology: Topology) -> None:
        if not any("keys" in other.parts for other in callbacks):
            raise ValueError(
                "ResidualExchange needs AttentionAggregation among trainer.callbacks, which uses the residuals"
            )

    def routes(self, world: World) -> Counter[str]:
        """Count the residuals of each route "origin > receiver" since the run began."""
        return self._counts(world, "routes")

    def refusals(self, world: World) -> Counter[str]:
        """Count the residuals that a rule of the topology rejected or kept back, by reason."""
        return self._counts(world, "refusals")

    def _counts(self, world: World, key: str) -> Counter[str]:
        counts = Counter[str]()
        for state in world.states.values():
            counts.update(self.memory(state).get(key, {}))
        return counts

    def on_topology_change(self, world: World, changes: Changes, states: Mapping[str, NodeState]) -> None:
        memories = {
            name: state.memory[self.state_key] for name, state in states.items() if self.state_key in state.memory
        }
        for child, parent in changes.parted:
            for key in ("children_keys", "outbox"):
                memories.get(parent, {}).get(key, {}).pop(child, None)
        for name in (name for name in memories if name in world.topology.nodes):
            _drop_forbidden(memories[name], world.topology.nodes[name], world.topology)
        total = self.memory(states[world.topology.root.name])  # the root keeps the counts of departed nodes
        for key in ("routes", "refusals"):
            for name in (name for name in changes.left if memories.get(name, {}).get(key)):
                total[key] = dict(Counter(total.get(key, {})) + Counter(memories[name][key]))

    # ------------------------------------------------------------------ down

    def on_download(self, context: Context, child: Any, download: Download) -> Download:
        waiting = self.memory(context.state).get("outbox", {}).pop(child.name, ())
        return replace(download, residuals=(*download.residuals, *map(residual_from_state, waiting)))

    def on_route(self, context: Context, download: Download) -> Download:
        accepted = []
        for residual in download.residuals:
            if reason := refusal(residual, context.node):  # the parent checks this too, but may run other code
                self._reject(context, f"residual of {residual.origin}: {reason}")
                continue
            own_keys = context.part("keys")
            reference = {name: context.world.reference[name] for name in own_keys}
            own = similarities(residual.keys, own_keys, reference, similarity=self.similarity)[""]
            decision = self._route(context, residual, min_fit=max(own, self.min_similarity))
            if decision.home is None:
                accepted.append(residual)
                self._count(context, residual, context.node.name)
            else:
                self._queue(context, decision.home, residual)
        context.state.inbox.extend(accepted)
        return replace(download, residuals=tuple(accepted))

    # ------------------------------------------------------------------ up

    def on_upload(self, context: Context, upload: Upload) -> Upload:
        memory = self.memory(context.state)
        climbing = [*memory.pop("missed", ()), *memory.pop("climbing", ())]
        newest = {saved["origin"]: residual_from_state(saved) for saved in climbing}
        return replace(upload, residuals=(*upload.residuals, *newest.values()))

    def on_missed(self, context: Context, upload: Upload) -> None:
        if upload.residuals:
            self.memory(context.state)["missed"] = [message_state(residual) for residual in upload.residuals]

    def after_aggregate(self, context: Context, uploads: list[Upload]) -> None:
        children = {child.name for child in context.node.children}
        children_keys = self.memory(context.state).setdefault("children_keys", {})
        children_keys.update(
            {upload.node: clone(upload.parts["keys"]) for upload in uploads if upload.node in children}
        )
        climbing: list[Residual] = []
        for upload in uploads:
            for residual in upload.residuals:
                decision = self._route(context, residual, min_fit=self.min_similarity, without=upload.node)
                if decision.home is None:
                    climbing.append(residual)
                else:
                    self._queue(context, decision.home, residual)
        if context.world.topology.parent(context.node.name) is None:
            for residual in climbing:
                self._count(context, residual, "dropped")
            return
        climbing += self._select(context, uploads)
        if climbing and not context.node.settings.residuals.share:
            self._reject(context, f"{context.node.name} does not share residuals")
            return
        self.memory(context.state)["climbing"] = [message_state(residual) for residual in climbing]

    def _select(self, context: Context, uploads: list[Upload]) -> list[Residual]:
        by_name = {upload.node: upload for upload in uploads}
        weights = {name: context.state.attention[name] for name in by_name}
        children = by_name.keys() - {context.node.name}
        selected = []
        for name in select_residuals(weights, children, self.num_residuals):
            settings = context.world.topology.nodes[name].settings
            if not settings.residuals.share:
                self._reject(context, f"{name} does not share residuals")
                continue
            upload = by_name[name]
            selected.append(
                Residual(
                    keys=clone(upload.parts["keys"]),
                    values=clone(upload.parts["values"]),
                    origin=name,
                    federation=context.node.name,
                    jurisdiction=settings.jurisdiction,
                    round=context.round,
                )
            )
        return selected

    # ------------------------------------------------------------------ both

    def _route(self, context: Context, residual: Residual, *, min_fit: float, without: str = "") -> Route:
        children = {child.name: child for child in context.node.children if child.name != without}
        decision = route(
            residual,
            children,
            self.memory(context.state).get("children_keys", {}),
            {name: context.world.reference[name] for name in residual.keys},
            min_fit=min_fit,
            similarity=self.similarity,
        )
        for reason in decision.refusals:
            self._reject(context, f"residual of {residual.origin}: {reason}")
        return decision

    def _queue(self, context: Context, child: str, residual: Residual) -> None:
        """Queue a residual for a child's next download."""
        outbox = self.memory(context.state).setdefault("outbox", {})
        outbox.setdefault(child, []).append(message_state(residual))

    def _increment(self, context: Context, key: str, name: str) -> int:
        counts = self.memory(context.state).setdefault(key, {})
        counts[name] = counts.get(name, 0) + 1
        return int(counts[name])

    def _reject(self, context: Context, reason: str) -> None:
        if self._increment(context, "refusals", reason) == 1:
            log.info("%s", reason)

    def _count(self, context: Context, residual: Residual, receiver: str) -> None:
        path = f"{residual.origin} > {receiver}"
        count = self._increment(context, "routes", path)
        context.log({f"residuals/{residual.origin}/{receiver}": count})
        context.log_text("residuals", f"round {context.round + 1}: {path}")


def _drop_forbidden(memory: dict[str, Any], node: Node, topology: Topology) -> None:
    """Drop the residuals queued at a node that the new topology's rules forbid, or whose origin left the topology."""
    parent = topology.parent(node.name)
    for key in memory.keys() & {"missed", "climbing"}:
        receiver = parent if node.settings.residuals.share else None
        memory[key] = [] if receiver is None else _allowed(memory[key], receiver, topology)
    outbox = memory.get("outbox", {})
    for child in outbox:
        outbox[child] = _allowed(outbox[child], topology.nodes[child], topology)


def _allowed(residuals: list[dict[str, Any]], holder: Node, topology: Topology) -> list[dict[str, Any]]:
    return [saved for saved in residuals if is_allowed_at(residual_from_state(saved), holder, topology)]
