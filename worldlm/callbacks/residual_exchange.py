"""Residuals: keys and values that climb to find related nodes, and the answers that descend."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict

from worldlm.callbacks.attention import AttentionAggregation
from worldlm.callbacks.sources import OTHERS, source_of
from worldlm.federation.attention import Source, similarities
from worldlm.federation.messages import (
    Download,
    Residual,
    SavedResidual,
    Upload,
    message_state,
    residual_from_state,
)
from worldlm.federation.residuals import is_allowed_at, select_residuals, why_kept_out
from worldlm.federation.state import NodeState
from worldlm.rounds import Context, RoundCallback, World
from worldlm.topology import Node, Topology
from worldlm.topology.changes import Changes
from worldlm.trainer import FederationCallback

log = logging.getLogger(__name__)


class _Memory(TypedDict, total=False):
    known: dict[str, list[SavedResidual]]
    unanswered: dict[str, list[str]]
    answers: dict[str, SavedResidual]
    climbing: list[SavedResidual]
    routes: dict[str, int]
    refusals: dict[str, int]


class ResidualExchange(FederationCallback):
    """Lets nodes find related nodes in other branches of the tree (arXiv 2405.14446; selection and answers are ours).

    After a federation has aggregated, it selects residuals: the keys and values of a child, or residuals from below it.
    They travel to the root with its uploads. Every ancestor on the way keeps them, and

    - mixes them by attention into what its other branches receive, so that related nodes there benefit;
    - answers them with its next download: a mixture, for the origin of the residual, of all that the ancestor knows
      from other branches. The answer descends to the federation of the origin, which attends over it in place of what
      it received for all its children.

    Those that are least similar to the other nodes of the federation are selected. An upload has at most
    `num_residuals` residuals, and a download as many answers, each as large as one pair of keys and values. Where a
    node's `residuals` in the topology do not accept the jurisdiction of a residual, no mixture with
    this residual reaches the node.

    Args:
        num_residuals: Largest number of residuals in an upload, at least 1.

    Raises:
        ValueError: If `num_residuals` is below 1, or there is no `AttentionAggregation`.
    """

    enforces = frozenset({"residuals"})
    memory_schema = _Memory

    def __init__(self, num_residuals: int = 4) -> None:
        if num_residuals < 1:
            raise ValueError(f"num_residuals must be at least 1, got {num_residuals}; remove the callback to send none")
        self.num_residuals = num_residuals

    def check_method(self, callbacks: Sequence[RoundCallback], topology: Topology) -> None:
        if not any(isinstance(other, AttentionAggregation) for other in callbacks):
            raise ValueError(
                "ResidualExchange needs AttentionAggregation among trainer.callbacks, which uses the residuals"
            )

    def routes(self, world: World) -> Counter[str]:
        """Count the answers by route "origin > node that the answer attends to most" since the run began."""
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
        for name in (name for name in memories if name in world.topology.nodes):
            _drop_forbidden(memories[name], world.topology.nodes[name], world.topology)
        total = self.memory(states[world.topology.root.name])  # the root keeps the counts of departed nodes
        for key in ("routes", "refusals"):
            for name in (name for name in changes.left if memories.get(name, {}).get(key)):
                total[key] = dict(Counter(total.get(key, {})) + Counter(memories[name][key]))

    # ------------------------------------------------------------------ what attention asks

    def residuals_for(self, context: Context, child: Node, receiver: str) -> dict[str, list[Residual]]:
        """Return, by branch, the residuals from other branches that a mixture for a receiver may contain.

        A mixture for a child may reach all nodes below it, one for the origin of a residual those on the way to it.
        """
        known = self.memory(context.state).get("known", {})
        branches = {name: found for name, found in known.items() if found and name != child.name}
        if not branches:
            return {}
        if receiver == child.name:
            reached = [*child.walk()]
        else:
            reached = context.world.topology.path(receiver)[len(context.world.topology.path(context.node.name)) :]
        strict = [node for node in reached if node.settings.residuals.accept_from is not None]
        allowed: dict[str, list[Residual]] = {}
        for name, found in branches.items():
            for residual in map(residual_from_state, found):
                if reason := why_kept_out(residual, strict):
                    self._reject(context, f"residual of {residual.origin}: {reason}")
                else:
                    allowed.setdefault(name, []).append(residual)
        return allowed

    def answer_to(self, context: Context, origin: str) -> Residual | None:
        """Return what an ancestor answered to the residual of a node below the context's federation, if anything."""
        saved = self.memory(context.state).get("answers", {}).get(origin)
        return None if saved is None else residual_from_state(saved)

    # ------------------------------------------------------------------ down

    def on_download(self, context: Context, child: Node, download: Download) -> Download:
        memory = self.memory(context.state)
        for below in child.walk():
            if below is not child:  # who was answered before, but not with this download
                context.state.attention.pop(below.name, None)
        origins = memory.get("unanswered", {}).pop(child.name, ())
        known = {saved["origin"]: saved for saved in memory.get("known", {}).get(child.name, ())}
        answers = [self._answer(context, child, residual_from_state(known[name])) for name in origins if name in known]
        return replace(download, residuals=(*download.residuals, *(answer for answer in answers if answer)))

    def _answer(self, context: Context, child: Node, residual: Residual) -> Residual | None:
        attention = context.find(AttentionAggregation)
        assert attention is not None, "check_method demands it"
        mixture = attention.attend(context, child, residual.origin, source_of(residual))
        if mixture is None:
            return None
        weights = {name: w for name, w in context.state.attention[residual.origin].items() if name != OTHERS}
        self._count(context, residual, max(weights, key=lambda name: weights[name]))
        return replace(
            residual,
            keys={**mixture.source.keys},
            values={**mixture.source.values},
            row_shares={**mixture.source.row_shares},
            federation=context.node.name,
            round=context.round,
            share=0.0,
            num_nodes=mixture.source.num_nodes,
            scale=mixture.source.scale,
        )

    def on_route(self, context: Context, download: Download) -> Download:
        if context.node.children:
            answers = {answer.origin: message_state(answer) for answer in download.residuals}
            self.memory(context.state)["answers"] = answers
        return replace(download, residuals=())

    # ------------------------------------------------------------------ up

    def on_upload(self, context: Context, upload: Upload) -> Upload:
        climbing = self.memory(context.state).pop("climbing", ())
        return replace(upload, residuals=(*upload.residuals, *map(residual_from_state, climbing)))

    def after_aggregate(self, context: Context, uploads: list[Upload]) -> None:
        memory = self.memory(context.state)
        known, unanswered = memory.setdefault("known", {}), memory.setdefault("unanswered", {})
        for upload in uploads:
            known[upload.node] = [message_state(residual) for residual in upload.residuals]
            unanswered[upload.node] = [residual.origin for residual in upload.residuals]
        if context.world.topology.parent(context.node.name) is not None:
            self._select(context, uploads)

    def _select(self, context: Context, uploads: list[Upload]) -> None:
        """Select the residuals of the next upload: among the children, and the residuals that came from below them."""
        attention, memory = context.find(AttentionAggregation), self.memory(context.state)
        assert attention is not None, "check_method demands it"
        layers = attention.uploads(context)
        shares = attention.shares(context)
        candidates = {
            residual.origin: (upload.node, replace(residual, share=residual.share * shares[upload.node]))
            for upload in uploads
            for residual in upload.residuals
        }
        children = [context.world.topology.nodes[upload.node] for upload in uploads if len(layers) > 1]
        for child in (child for child in children if child.name != context.node.name):
            if child.settings.residuals.share:
                candidates[child.name] = (child.name, _residual(context, child, layers[child.name], shares[child.name]))
            else:
                self._reject(context, f"{child.name} does not share residuals")
        if candidates and not context.node.settings.residuals.share:
            self._reject(context, f"{context.node.name} does not share residuals")
            return
        reference = {name: context.world.reference[name] for name in context.part("keys")}
        fits = {}
        for origin, (branch, residual) in candidates.items():
            others = [source for name, source in layers.items() if name != branch]
            scores = similarities(source_of(residual), others, reference) if others else [0.0]
            fits[origin] = sum(scores) / len(scores)
        selected = select_residuals(fits, self.num_residuals)
        memory["climbing"] = [message_state(candidates[origin][1]) for origin in selected]

    # ------------------------------------------------------------------ both

    def _increment(self, context: Context, key: str, name: str) -> int:
        memory = self.memory(context.state)
        counts = {**memory.get(key, {})}
        counts[name] = counts.get(name, 0) + 1
        memory[key] = dict(sorted(counts.items()))  # in the same order with any number of processes
        return int(counts[name])

    def _reject(self, context: Context, reason: str) -> None:
        if self._increment(context, "refusals", reason) == 1:
            log.info("%s", reason)

    def _count(self, context: Context, residual: Residual, home: str) -> None:
        path = f"{residual.origin} > {home}"
        count = self._increment(context, "routes", path)
        context.log({f"residuals/{residual.origin}/{home}": count})
        context.log_text("residuals", f"round {context.round + 1}: {path}")


def _residual(context: Context, child: Node, layers: Source, share: float) -> Residual:
    return Residual(
        keys={**layers.keys},
        values={**layers.values},
        row_shares={**layers.row_shares},
        origin=child.name,
        federation=context.node.name,
        jurisdiction=child.settings.jurisdiction,
        round=context.round,
        share=share,
        num_nodes=layers.num_nodes,
        scale=layers.scale,
    )


def _drop_forbidden(memory: dict[str, Any], node: Node, topology: Topology) -> None:
    """Drop what a node knows of residuals that the new topology's rules forbid, or whose origin left its branch.

    Answers need no check: the next download replaces them before they are used.
    """
    parent = topology.parent(node.name)
    if "climbing" in memory:
        may_climb = parent is not None and node.settings.residuals.share
        memory["climbing"] = _allowed(memory["climbing"], parent, topology) if parent and may_climb else []
    branches = {child.name: {below.name for below in child.walk()} for child in node.children}
    for key, origin in (("known", lambda saved: saved["origin"]), ("unanswered", str)):
        for branch, found in [*memory.get(key, {}).items()]:
            allowed = _allowed(found, node, topology) if key == "known" else found
            kept = [entry for entry in allowed if origin(entry) in branches.get(branch, ())]
            memory[key] = {**memory[key], branch: kept}


def _allowed(residuals: list[dict[str, Any]], holder: Node, topology: Topology) -> list[dict[str, Any]]:
    return [saved for saved in residuals if is_allowed_at(residual_from_state(saved), holder, topology)]
