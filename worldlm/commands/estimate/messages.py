"""How large the messages of a method are. Whatever changes what they carry changes it here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lightning.pytorch import LightningModule
from torch import Tensor

from worldlm.callbacks import Compression, ResidualExchange, TokenRows
from worldlm.federation.compression import Encoding, encoded_bytes
from worldlm.federation.parameters import PARTS, Part
from worldlm.rounds import RoundCallback
from worldlm.topology import Settings

_BYTES_OF_A_COUNT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageSizes:
    """Bytes of what travels between a node and its parent."""

    parts: dict[Part, int]
    """Of every part of the model, whether it travels or not."""
    model: int
    """Of the parts that travel, as a node holds them."""
    packed_down: int | None = None
    """Of the same in a download; None where nothing is packed."""
    packed_up: int | None = None
    """Of the same in an upload."""
    row_counts: int = 0
    """Of the counts of tokens in an upload; they stay at home where a node is private."""
    residual_down: int = 0
    """Of one residual in a download; 0 where none are exchanged."""
    residual_up: int = 0
    """Of one residual in an upload."""
    num_residuals: int = 0
    """Residuals that a federation selects each time it aggregates, at most."""

    @property
    def whole(self) -> int:
        """Bytes of the whole model."""
        return sum(self.parts.values())

    @property
    def download(self) -> int:
        """Bytes of a download, residuals left out."""
        return self.model if self.packed_down is None else self.packed_down

    def upload(self, settings: Settings) -> int:
        """Return the bytes of an upload, residuals left out."""
        model = self.model if self.packed_up is None else self.packed_up
        return model + (0 if settings.is_private else self.row_counts)


def message_sizes(module: LightningModule, callbacks: Sequence[RoundCallback]) -> MessageSizes:
    """Work out the sizes of a method's messages.

    Args:
        module: The model; only the names, shapes and types of its parameters matter.
        callbacks: The pieces of the method.
    """
    partition: dict[str, Part] = module.partition()  # type: ignore[operator]
    tensors: dict[str, Tensor] = dict(module.named_parameters())
    travelling = frozenset().union(*(callback.parts for callback in callbacks))
    packing = next((one for one in callbacks if isinstance(one, Compression)), Compression("none", "none"))

    def of_parts(wanted: Iterable[Part], encoding: Encoding) -> int:
        return encoded_bytes((tensors[name] for name, part in partition.items() if part in wanted), encoding)

    exchanges = [callback for callback in callbacks if isinstance(callback, ResidualExchange)]
    personal: tuple[Part, ...] = ("keys", "values") if exchanges else ()
    rows = [
        tensors[name].shape[0]
        for callback in callbacks
        if isinstance(callback, TokenRows)
        for name in callback.find(tensors)
    ]
    return MessageSizes(
        parts={part: of_parts([part], "none") for part in PARTS},
        model=of_parts(travelling, "none"),
        packed_down=of_parts(travelling, packing.down),
        packed_up=of_parts(travelling, packing.up),
        row_counts=_BYTES_OF_A_COUNT * sum(rows),
        residual_down=of_parts(personal, packing.down),
        residual_up=of_parts(personal, packing.up),
        num_residuals=max((callback.num_residuals for callback in exchanges), default=0),
    )
