"""Residuals on their way: selected, climbing, delivered."""

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
    """Sends what fits badly at home to the federation it fits best (arXiv 2405.14446; ALGORITHM section 5).

    After a federation aggregated, the (K, V) of the children it attended to least climb towards the root with its
    upload. The first ancestor that has a better home for one on another branch hands it to that child with its next
    download; it descends as long as a child fits it better still. What finds no home up to the root is dropped.

    Args:
        num_residuals: Residuals that a federation sends per aggregation, at least 1.
        min_similarity: A home must fit better than this.
        similarity: `cosine`, `dot` or `distance`, as in attention.

    Raises:
        ValueError: If num_residuals is below 1, or the recipe has no AttentionAggregation to use the residuals.
    """

    enforces = frozenset({"residuals"})
    memory_schema = _Memory

    def __init__(self, num_residuals: int = 1, min_similarity: float = 0.0, similarity: Similarity = "cosine") -> None:
        if num_residuals < 1:
            raise ValueError(f"num_residuals must be at least 1, got {num_residuals}; leave the callback out for none")
        self.num_residuals = num_residuals
        self.min_similarity = min_similarity
        self.similarity: Similarity = similarity

    def check_method(self, callbacks: Sequence[RoundCallback], topology: Topology) -> None:
        if not any("keys" in other.parts for other in callbacks):
            raise ValueError(
                "ResidualExchange needs AttentionAggregation among trainer.callbacks: it uses the residuals"
            )

    def routes(self, world: World) -> Counter[str]:
        """Count how often "origin > home" happened, since the run began."""
        return self._counts(world, "routes")

    def refusals(self, world: World) -> Counter[str]:
        """Count how often a rule kept a residual out or in, by reason."""
        return self._counts(world, "refusals")

    def _counts(self, world: World, what: str) -> Counter[str]:
        return sum((Counter(self.memory(state).get(what, {})) for state in world.states.values()), Counter[str]())

    def on_topology_change(self, world: World, changes: Changes, states: Mapping[str, NodeState]) -> None:
        kept = {name: state.memory[self.state_key] for name, state in states.items() if self.state_key in state.memory}
        for child, parent in changes.parted:
            for what in ("children_keys", "outbox"):
                kept.get(parent, {}).get(what, {}).pop(child, None)
        for name in (name for name in kept if name in world.topology.nodes):
            _obey(kept[name], world.topology.nodes[name], world.topology)
        total = self.memory(states[world.topology.root.name])  # what happened stays counted
        for what in ("routes", "refusals"):
            for name in (name for name in changes.left if kept.get(name, {}).get(what)):
                total[what] = dict(Counter(total.get(what, {})) + Counter(kept[name][what]))

    # ------------------------------------------------------------------ down

    def on_download(self, context: Context, child: Any, download: Download) -> Download:
        waiting = self.memory(context.state).get("outbox", {}).pop(child.name, ())
        return replace(download, residuals=(*download.residuals, *map(residual_from_state, waiting)))

    def on_route(self, context: Context, download: Download) -> Download:
        kept = []
        for residual in download.residuals:
            if reason := refusal(residual, context.node):  # its parent, which asked too, may run other code
                self._refuse(context, f"residual of {residual.origin}: {reason}")
                continue
            own_keys = context.part("keys")
            reference = {name: context.world.reference[name] for name in own_keys}
            own = similarities(residual.keys, own_keys, reference, similarity=self.similarity)[""]
            found = self._route(context, residual, min_fit=max(own, self.min_similarity))
            if found.home is None:
                kept.append(residual)
                self._count(context, residual, context.node.name)
            else:
                self._hand_on(context, found.home, residual)
        context.state.inbox.extend(kept)
        return replace(download, residuals=tuple(kept))

    # ------------------------------------------------------------------ up

    def on_upload(self, context: Context, upload: Upload) -> Upload:
        memory = self.memory(context.state)
        climbing = [*memory.pop("missed", ()), *memory.pop("climbing", ())]
        newest = {one["origin"]: residual_from_state(one) for one in climbing}
        return replace(upload, residuals=(*upload.residuals, *newest.values()))

    def on_missed(self, context: Context, upload: Upload) -> None:
        if upload.residuals:
            self.memory(context.state)["missed"] = [message_state(residual) for residual in upload.residuals]

    def after_aggregate(self, context: Context, uploads: list[Upload]) -> None:
        children = {child.name for child in context.node.children}
        known = self.memory(context.state).setdefault("children_keys", {})
        known.update({one.node: clone(one.parts["keys"]) for one in uploads if one.node in children})
        climbing: list[Residual] = []
        for upload in uploads:
            for residual in upload.residuals:
                found = self._route(context, residual, min_fit=self.min_similarity, without=upload.node)
                if found.home is None:
                    climbing.append(residual)
                else:
                    self._hand_on(context, found.home, residual)
        if context.world.topology.parent(context.node.name) is None:
            for residual in climbing:
                self._count(context, residual, "dropped")
            return
        climbing += self._selected(context, uploads)
        if climbing and not context.node.settings.residuals.share:
            self._refuse(context, f"{context.node.name} does not share residuals")
            return
        self.memory(context.state)["climbing"] = [message_state(residual) for residual in climbing]

    def _selected(self, context: Context, uploads: list[Upload]) -> list[Residual]:
        by_name = {upload.node: upload for upload in uploads}
        weights = {name: context.state.attention[name] for name in by_name}
        children = by_name.keys() - {context.node.name}
        chosen = []
        for name in select_residuals(weights, children, self.num_residuals):
            settings = context.world.topology.nodes[name].settings
            if not settings.residuals.share:
                self._refuse(context, f"{name} does not share residuals")
                continue
            upload = by_name[name]
            chosen.append(
                Residual(
                    keys=clone(upload.parts["keys"]),
                    values=clone(upload.parts["values"]),
                    origin=name,
                    federation=context.node.name,
                    jurisdiction=settings.jurisdiction,
                    round=context.round,
                )
            )
        return chosen

    # ------------------------------------------------------------------ both

    def _route(self, context: Context, residual: Residual, *, min_fit: float, without: str = "") -> Route:
        children = {child.name: child for child in context.node.children if child.name != without}
        found = route(
            residual,
            children,
            self.memory(context.state).get("children_keys", {}),
            {name: context.world.reference[name] for name in residual.keys},
            min_fit=min_fit,
            similarity=self.similarity,
        )
        for reason in found.refusals:
            self._refuse(context, f"residual of {residual.origin}: {reason}")
        return found

    def _hand_on(self, context: Context, child: str, residual: Residual) -> None:
        """Keep a residual for a child's next download."""
        outbox = self.memory(context.state).setdefault("outbox", {})
        outbox.setdefault(child, []).append(message_state(residual))

    def _add_one(self, context: Context, what: str, name: str) -> int:
        counts = self.memory(context.state).setdefault(what, {})
        counts[name] = counts.get(name, 0) + 1
        return int(counts[name])

    def _refuse(self, context: Context, reason: str) -> None:
        if self._add_one(context, "refusals", reason) == 1:
            log.info("%s", reason)

    def _count(self, context: Context, residual: Residual, home: str) -> None:
        path = f"{residual.origin} > {home}"
        count = self._add_one(context, "routes", path)
        context.log({f"residuals/{residual.origin}/{home}": count})
        context.log_text("residuals", f"round {context.round}: {path}")


def _obey(memory: dict[str, Any], node: Node, topology: Topology) -> None:
    """Drop the residuals that wait at a node and may not go on by its tree's rules, who left taking theirs along."""
    above = topology.parent(node.name)
    for what in memory.keys() & {"missed", "climbing"}:
        may_leave = above if node.settings.residuals.share else None
        memory[what] = [] if may_leave is None else _allowed(memory[what], may_leave, topology)
    outbox = memory.get("outbox", {})
    for child in outbox:
        outbox[child] = _allowed(outbox[child], topology.nodes[child], topology)


def _allowed(residuals: list[dict[str, Any]], holder: Node, topology: Topology) -> list[dict[str, Any]]:
    return [one for one in residuals if is_allowed_at(residual_from_state(one), holder, topology)]
