"""Averaging of embedding rows, weighted by how often each participant read the token."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict

from lightning.pytorch import LightningModule
from torch import Tensor

from worldlm.callbacks.attention import AttentionAggregation
from worldlm.callbacks.averaging import Averaging
from worldlm.callbacks.robust_averaging import RobustAveraging
from worldlm.federation.messages import Upload
from worldlm.federation.parameters import Part, Tensors
from worldlm.federation.state import NodeState
from worldlm.federation.token_rows import Tally, row_shares
from worldlm.federation.type_checks import check_fields
from worldlm.models import parts_of
from worldlm.models.batches import Batch, tokens_read
from worldlm.rounds import Context, LocalFit, RoundCallback, World
from worldlm.topology import Topology
from worldlm.topology.changes import Changes
from worldlm.trainer import FederationCallback, WorldTrainer

log = logging.getLogger(__name__)


_DEFAULT = "transformer.wte.weight"
"""The embedding, in a module that does not name its own."""


class _Memory(TypedDict, total=False):
    own_fit: Tensor
    unsent: Tensor


class TokenRows(FederationCallback):
    """Makes `Averaging` average the embedding row by row (this project's interpretation; not in arXiv 2405.14446).

    For row r, each participant is weighted by how often token r occurred in the text that it, and all nodes below it,
    trained on since its last upload. A row whose token no participant read keeps the federation's value. The total
    weight of a participant is still set by `Averaging` and the topology; the counts only distribute it over the rows.
    The outer optimizer then steps the embedding like all other tensors.

    Each upload contains the counts of all tokens of the batches, inputs and targets: 4 bytes per row. The counts reveal
    the text, so a node with `privacy` or `example_privacy` does not send them. Its weight is then distributed equally
    over all rows, which is logged once.

    If the module names no such tensor, because its embedding is frozen, nothing is counted, and no weights change.

    Args:
        parameter: Name of the tensor with one row per token, or the last dot-separated components of its name. By
            default those that the module names: the embedding, and the head if its weights are not the embedding's.

    Raises:
        ValueError: If there is no such tensor, or a given name matches several; if several are not in one part; if no
            `Averaging` merges this part (nor, if these are the values, `AttentionAggregation`), or a
            `RobustAveraging` does; or if `TokenRows` is listed twice.
    """

    memory_schema = _Memory

    def __init__(self, parameter: str | None = None) -> None:
        self.parameter = parameter
        self._names: list[str] = []
        self.part: Part = "backbone"
        """The part that the tensors belong to."""
        self._num_rows = 0
        self._tally: Tally | None = None  # of the current fit
        self._logged: set[str] = set()

    def find(self, module: Any) -> list[str]:
        """Return the names of the tensors with one row per token in a module."""
        if self.parameter is None and hasattr(module, "embeddings"):
            return list(module.embeddings())
        end = f".{self.parameter or _DEFAULT}"
        return [name for name, _ in module.named_parameters() if f".{name}".endswith(end)]

    def setup(self, trainer: WorldTrainer, pl_module: LightningModule, stage: str) -> None:  # type: ignore[override]
        module: Any = pl_module
        parts = parts_of(module)
        names = self.find(module)
        if not names and self.parameter is None and hasattr(module, "embeddings"):
            log.info("TokenRows has no effect: the embedding is frozen")
            self._names, self._num_rows = [], 0
            return
        if not names or (self.parameter is not None and len(names) > 1):
            matching = f"{len(names)} parameters are" if names else "no parameter is"
            raise ValueError(
                f"TokenRows: {matching} named {self.parameter or _DEFAULT!r}; parameters: {', '.join(parts)}"
            )
        if len({parts[name] for name in names}) > 1:
            where = ", ".join(f"{name} is in the {parts[name]}" for name in names)
            raise ValueError(f"TokenRows: {where}: change the split, or name one of them with `parameter`")
        self._names, self.part = names, parts[names[0]]
        self._num_rows = module.get_parameter(names[0]).shape[0]
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        kinds: tuple[type[Averaging | AttentionAggregation], ...] = (Averaging,)
        if self.part == "values":  # attention mixes no rows of other parts
            kinds = (Averaging, AttentionAggregation)
        merging = [other for other in callbacks if isinstance(other, kinds) and self.part in other.parts]
        if any(isinstance(other, RobustAveraging) for other in merging):
            raise ValueError(
                "RobustAveraging does not support TokenRows: remove TokenRows, or merge the embedding with Averaging"
            )
        if not merging:
            needed = " or ".join(f"an {kind.__name__}" for kind in kinds)
            raise ValueError(f"TokenRows needs {needed} of the {self.part}, the part that contains {names[0]}")

    def check_method(self, callbacks: Sequence[RoundCallback], topology: Topology) -> None:
        if sum(isinstance(other, TokenRows) for other in callbacks) > 1:
            raise ValueError("trainer.callbacks lists TokenRows more than once")

    def on_topology_change(self, world: World, changes: Changes, states: Mapping[str, NodeState]) -> None:
        for name in changes.moved:
            states[name].memory.get(self.state_key, {}).pop("unsent", None)  # `unsent_tokens` is dropped as well

    def row_shares(self, context: Context, upload: Upload | None) -> Tensors:
        """Return the distribution of an upload's weight over the rows: float64 [vocab] summing to 1, by tensor name.

        Without an upload, all rows have the same share.
        """
        if not self._names:
            return {}
        counts = None if upload is None else self._counts(context, upload)
        shares = row_shares(counts, self._num_rows)
        return dict.fromkeys(self._names, shares)

    def _counts(self, context: Context, upload: Upload) -> Tensor | None:
        """Return the token counts of an upload, or None: those of the federation's own fit are in its memory."""
        if upload.node == context.node.name:
            own_fit: Tensor | None = self.memory(context.state).get("own_fit")
            return own_fit
        return upload.row_counts.get(self._names[0])

    # ------------------------------------------------------------------ counting

    def on_local_fit_start(self, context: Context, fit: LocalFit) -> None:
        if not self._names:
            self._tally = None
        elif context.node.settings.example_privacy is not None:
            self._tally = None  # with counts, the federation's model would reveal which tokens occur
            self._log_withheld(context)
        elif self._tally is None or not fit.resumed:
            self._tally = Tally.empty(self._num_rows, fit.device)
        else:
            self._tally = self._tally.to(fit.device)

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: WorldTrainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if self._tally is not None:
            tokens, counted = tokens_read(batch)
            self._tally.add_(tokens, batch_idx, trainer.accumulate_grad_batches, counted)

    def on_local_fit_end(self, context: Context) -> None:
        tally, self._tally = self._tally, None
        if tally is None:
            return
        if all(child.listens for child in context.node.children):  # this node does not aggregate
            self._add(context, tally.total)
        else:
            self.memory(context.state)["own_fit"] = tally.total.cpu()

    def _add(self, context: Context, counts: Tensor) -> None:
        """Add token counts to those of the node's next upload."""
        exact, memory = counts.to("cpu").double(), self.memory(context.state)
        memory["unsent"] = memory["unsent"].to("cpu") + exact if "unsent" in memory else exact

    # ------------------------------------------------------------------ uploads

    def on_upload(self, context: Context, upload: Upload) -> Upload:
        counts, settings = self.memory(context.state).pop("unsent", None), context.node.settings
        if settings.is_private and self._names:
            self._log_withheld(context)
            return upload
        if counts is None:
            return upload
        return replace(upload, row_counts={**upload.row_counts, self._names[0]: counts.float()})

    def on_missed(self, context: Context, upload: Upload) -> None:
        if self._names and (counts := upload.row_counts.get(self._names[0])) is not None:
            self._add(context, counts)

    def on_aggregate(self, context: Context, uploads: list[Upload]) -> None:
        if context.world.topology.parent(context.node.name) is None or not self._names:
            return
        for upload in uploads:
            counts = self._counts(context, upload)
            self._add(context, upload.num_tokens * row_shares(None, self._num_rows) if counts is None else counts)

    def _log_withheld(self, context: Context) -> None:
        if context.node.name not in self._logged:
            self._logged.add(context.node.name)
            log.info(
                "%s is private and does not send token counts; all rows of %s get the same share of its weight",
                context.node.name, " and ".join(self._names),
            )  # fmt: skip

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        tally = self._tally
        return {"tally": None if tally is None else [tally.settled, tally.running, tally.start]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._tally = None if state_dict["tally"] is None else Tally(*state_dict["tally"])
        if self._tally is not None:
            check_fields(self._tally)
