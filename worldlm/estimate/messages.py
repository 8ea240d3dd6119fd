"""How large the messages of a method are. Whatever changes what they carry changes it here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning.pytorch import LightningModule
from torch import Tensor

from worldlm.callbacks import ResidualExchange, TokenRows
from worldlm.federation.parameters import PARTS, Part
from worldlm.loop import FederationCallback
from worldlm.topology import Settings

_BYTES_OF_A_COUNT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageSizes:
    """Bytes of what travels between a node and its parent."""

    parts: dict[Part, int]
    """Of every part of the model, whether it travels or not."""
    model: int
    """Of the parts that travel, which each download and each upload carries."""
    row_counts: int = 0
    """Of the counts of tokens in an upload; they stay at home where a node is private."""
    residual: int = 0
    """Of one residual; 0 where none are exchanged."""
    num_residuals: int = 0
    """Residuals that a federation selects each time it aggregates, at most."""

    @property
    def whole(self) -> int:
        """Bytes of the whole model."""
        return sum(self.parts.values())

    def upload(self, settings: Settings) -> int:
        """Return the bytes of an upload, residuals left out."""
        is_private = settings.privacy is not None or settings.example_privacy is not None
        return self.model + (0 if is_private else self.row_counts)


def message_sizes(module: LightningModule, callbacks: Sequence[FederationCallback]) -> MessageSizes:
    """Work out the sizes of a method's messages.

    Args:
        module: The model; only the names, shapes and types of its parameters matter.
        callbacks: The pieces of the method.
    """
    partition: dict[str, Part] = module.partition()  # type: ignore[operator]
    tensors: dict[str, Tensor] = dict(module.named_parameters())
    parts = dict.fromkeys(PARTS, 0)
    for name, part in partition.items():
        parts[part] += tensors[name].numel() * tensors[name].element_size()
    travelling = frozenset().union(*(callback.parts for callback in callbacks))
    rows = [
        tensor.shape[0]
        for callback in callbacks
        if isinstance(callback, TokenRows)
        for name, tensor in tensors.items()
        if f".{name}".endswith(f".{callback.parameter}")
    ]
    exchanges = [callback for callback in callbacks if isinstance(callback, ResidualExchange)]
    return MessageSizes(
        parts=parts,
        model=sum(size for part, size in parts.items() if part in travelling),
        row_counts=_BYTES_OF_A_COUNT * sum(rows),
        residual=parts["keys"] + parts["values"] if exchanges else 0,
        num_residuals=max((callback.num_residuals for callback in exchanges), default=0),
    )
