"""The sizes of a method's messages. A callback that changes their content must be considered here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lightning.pytorch import LightningModule
from torch import Tensor

from worldlm.callbacks import AttentionAggregation, Compression, ResidualExchange, TokenRows
from worldlm.federation.compression import Encoding, encoded_bytes
from worldlm.federation.parameters import PARTS, Part
from worldlm.models import parts_of
from worldlm.rounds import RoundCallback
from worldlm.topology import Settings

_COUNT_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageSizes:
    """Bytes of the messages between a node and its parent."""

    parts: dict[Part, int]
    """Size of every part of the model, whether it is sent or not."""
    model: int
    """Size of the parts that are sent, without compression."""
    num_sent: int = 0
    """Number of their parameters."""
    packed_down: int | None = None
    """Their compressed size in a download; None without compression."""
    packed_up: int | None = None
    """Their compressed size in an upload; None without compression."""
    row_counts: int = 0
    """Size of the token counts in an upload. A private node does not send them."""
    row_weights: int = 0
    """Size of the row shares and row weights in a download; 0 if no attention mixes the embedding."""
    residual_down: int = 0
    """Size of one residual in a download; 0 without residual exchange."""
    residual_up: int = 0
    """Size of one residual in an upload."""
    num_residuals: int = 0
    """Most residuals in one upload, and most answers in one download."""

    @property
    def whole(self) -> int:
        """Size of the whole model."""
        return sum(self.parts.values())

    @property
    def download(self) -> int:
        """Size of a download without residuals."""
        return self.row_weights + (self.model if self.packed_down is None else self.packed_down)

    def upload(self, settings: Settings) -> int:
        """Return the size of an upload without residuals."""
        model = self.model if self.packed_up is None else self.packed_up
        return model + (0 if settings.is_private else self.row_counts)


def message_sizes(module: LightningModule, callbacks: Sequence[RoundCallback]) -> MessageSizes:
    """Compute the sizes of a method's messages.

    Args:
        module: The model. Only names, shapes and types of its parameters are used.
        callbacks: The callbacks of the method.
    """
    partition = parts_of(module)
    tensors: dict[str, Tensor] = dict(module.named_parameters())
    sent = frozenset().union(*(callback.parts for callback in callbacks))
    compressions = (callback for callback in callbacks if isinstance(callback, Compression))
    compression = next(compressions, Compression("none", "none"))

    def size_of(wanted: Iterable[Part], encoding: Encoding) -> int:
        return encoded_bytes((tensors[name] for name, part in partition.items() if part in wanted), encoding)

    exchanges = [callback for callback in callbacks if isinstance(callback, ResidualExchange)]
    residual_parts: tuple[Part, ...] = ("keys", "values") if exchanges else ()
    counted = [name for callback in callbacks if isinstance(callback, TokenRows) for name in callback.find(module)]
    row_bytes = _COUNT_BYTES * (tensors[counted[0]].shape[0] if counted else 0)  # tied or not, the counts are the same
    attended = {part for callback in callbacks if isinstance(callback, AttentionAggregation) for part in callback.parts}
    mixed_rows = row_bytes * sum(partition[name] in attended for name in counted)
    residual_rows = mixed_rows if exchanges else 0
    return MessageSizes(
        parts={part: size_of([part], "none") for part in PARTS},
        model=size_of(sent, "none"),
        num_sent=sum(tensors[name].numel() for name, part in partition.items() if part in sent),
        packed_down=size_of(sent, compression.down),
        packed_up=size_of(sent, compression.up),
        row_counts=row_bytes,
        row_weights=2 * mixed_rows,
        residual_down=size_of(residual_parts, compression.down) + residual_rows,
        residual_up=size_of(residual_parts, compression.up) + residual_rows,
        num_residuals=max((callback.num_residuals for callback in exchanges), default=0),
    )
