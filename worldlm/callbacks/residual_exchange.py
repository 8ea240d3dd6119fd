"""Residuals on their way: selected, climbing, delivered."""

import logging
from collections import Counter
from dataclasses import replace
from typing import Any

from worldlm.callbacks.scalars import log_scalars, log_text
from worldlm.federation.attention import Similarity, similarities
from worldlm.federation.messages import (
    Download,
    Residual,
    Upload,
    message_state,
    residual_from_state,
)
from worldlm.federation.parameters import Tensors, clone
from worldlm.federation.residuals import Route, route, select_residuals
from worldlm.loop import Context, FederationCallback, WorldTrainer

log = logging.getLogger(__name__)


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

    honours = frozenset({"residuals"})

    def __init__(self, num_residuals: int = 1, min_similarity: float = 0.0, similarity: Similarity = "cosine") -> None:
        if num_residuals < 1:
            raise ValueError(f"num_residuals must be at least 1, got {num_residuals}; leave the callback out for none")
        self.num_residuals = num_residuals
        self.min_similarity = min_similarity
        self.similarity: Similarity = similarity
        self.routes: Counter[str] = Counter()
        """How often "origin > home" happened, since the run began."""
        self.refusals: Counter[str] = Counter()
        """How often a rule kept a residual out or in, by reason."""
        self._outbox: dict[str, list[Residual]] = {}  # by the child that gets them with its next download
        self._climbing: dict[str, list[Residual]] = {}  # by the federation that sends them with its next upload
        self._children_keys: dict[str, dict[str, Tensors]] = {}  # by federation: what its children last uploaded

    def setup(self, trainer: WorldTrainer, pl_module: Any, stage: str) -> None:  # type: ignore[override]
        if "keys" not in frozenset().union(*(getattr(c, "parts", ()) for c in trainer.callbacks)):  # type: ignore[attr-defined]
            raise ValueError(
                "ResidualExchange needs AttentionAggregation among trainer.callbacks: it uses the residuals"
            )

    # ------------------------------------------------------------------ down

    def on_download(self, trainer: WorldTrainer, context: Context, child: Any, download: Download) -> Download:
        return replace(download, residuals=(*download.residuals, *self._outbox.pop(child.name, ())))

    def on_route(self, trainer: WorldTrainer, context: Context, download: Download) -> Download:
        kept = []
        for residual in download.residuals:
            own_keys = context.part("keys")
            reference = {name: context.world.reference[name] for name in own_keys}
            own = similarities(residual.keys, own_keys, reference, similarity=self.similarity)[""]
            found = self._route(context, residual, min_fit=max(own, self.min_similarity))
            if found.home is None:
                kept.append(residual)
                self._count(trainer, context, residual, context.node.name)
            else:
                self._outbox.setdefault(found.home, []).append(residual)
        context.state.inbox.extend(kept)
        return replace(download, residuals=tuple(kept))

    # ------------------------------------------------------------------ up

    def on_upload(self, trainer: WorldTrainer, context: Context, upload: Upload) -> Upload:
        return replace(upload, residuals=(*upload.residuals, *self._climbing.pop(context.node.name, ())))

    def on_emit(self, trainer: WorldTrainer, context: Context, uploads: list[Upload]) -> None:
        children = {child.name for child in context.node.children}
        known = self._children_keys.setdefault(context.node.name, {})
        known.update({one.node: clone(one.parts["keys"]) for one in uploads if one.node in children})
        climbing: list[Residual] = []
        for upload in uploads:
            for residual in upload.residuals:
                found = self._route(context, residual, min_fit=self.min_similarity, without=upload.node)
                if found.home is None:
                    climbing.append(residual)
                else:
                    self._outbox.setdefault(found.home, []).append(residual)
        if context.world.topology.parent(context.node.name) is None:
            for residual in climbing:
                self._count(trainer, context, residual, "dropped")
            return
        climbing += self._selected(context, uploads)
        if climbing and not context.node.settings.residuals.share:
            self._refuse(f"{context.node.name} does not share residuals")
            return
        self._climbing.setdefault(context.node.name, []).extend(climbing)

    def _selected(self, context: Context, uploads: list[Upload]) -> list[Residual]:
        by_name = {upload.node: upload for upload in uploads}
        weights = {name: context.state.attention[name] for name in by_name}
        children = by_name.keys() - {context.node.name}
        chosen = []
        for name in select_residuals(weights, children, self.num_residuals):
            settings = context.world.topology.nodes[name].settings
            if not settings.residuals.share:
                self._refuse(f"{name} does not share residuals")
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
            self._children_keys.get(context.node.name, {}),
            {name: context.world.reference[name] for name in residual.keys},
            min_fit=min_fit,
            similarity=self.similarity,
        )
        for reason in found.refusals:
            self._refuse(f"residual of {residual.origin}: {reason}")
        return found

    def _refuse(self, reason: str) -> None:
        if not self.refusals[reason]:
            log.info("%s", reason)
        self.refusals[reason] += 1

    def _count(self, trainer: WorldTrainer, context: Context, residual: Residual, home: str) -> None:
        path = f"{residual.origin} > {home}"
        self.routes[path] += 1
        log_scalars(trainer, {f"residuals/{residual.origin}/{home}": self.routes[path]}, context.round)
        log_text(trainer, "residuals", f"round {context.round}: {path}", context.round)

    def state_dict(self) -> dict[str, Any]:
        def plain(boxes: dict[str, list[Residual]]) -> dict[str, Any]:
            return {name: [message_state(residual) for residual in box] for name, box in boxes.items()}

        return {
            "outbox": plain(self._outbox),
            "climbing": plain(self._climbing),
            "children_keys": {name: dict(keys) for name, keys in self._children_keys.items()},
            "routes": dict(self.routes),
            "refusals": dict(self.refusals),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def messages(boxes: dict[str, Any]) -> dict[str, list[Residual]]:
            return {name: [residual_from_state(one) for one in box] for name, box in boxes.items()}

        self._outbox = messages(state_dict["outbox"])
        self._climbing = messages(state_dict["climbing"])
        self._children_keys = {name: dict(keys) for name, keys in state_dict["children_keys"].items()}
        self.routes = Counter(state_dict["routes"])
        self.refusals = Counter(state_dict["refusals"])
