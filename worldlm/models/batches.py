"""Batches: what a model reads, and what it is to predict.

| batch | text | loss |
|---|---|---|
| int64 [batch, seq + 1] | plain: every token but the first is predicted | mean of the tokens |
| int32 [batch, seq + 1], negative after the end of a text | plain, of documents or persons | mean of the examples |
| dict of int64 [batch, seq] | conversations | mean of the predicted tokens |
| dict of int32 [batch, seq] | conversations, with example-level privacy | mean of the examples |

A dict has the names of transformers: `input_ids`; `labels`, which are not shifted, and -100 where nothing is predicted;
and `position_ids`, which restart at 0 in each conversation. See `worldlm.data.ConversationRows`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Batch: TypeAlias = Tensor | Mapping[str, Tensor]
IGNORED = -100
"""Stands where nothing is to be predicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """A batch as a model needs it."""

    tokens: Tensor
    """The inputs, int [batch, seq]."""
    targets: Tensor
    """The token after each input, int [batch, seq]; negative where nothing is to be predicted."""
    position_ids: Tensor | None = None
    """Positions of the inputs in their conversations, [batch, seq]; None if a row is one text."""
    weighs_examples: bool = False
    """Whether the loss is the mean of the examples' losses, not of those of all tokens."""

    @property
    def predicts_all(self) -> bool:
        """Whether every target is a token."""
        return self.position_ids is None and not self.weighs_examples


def read_batch(batch: Batch) -> Examples:
    """Return the inputs and the targets of a batch; the module describes the kinds of batches."""
    if isinstance(batch, Tensor):
        is_padded = batch.dtype == torch.int32
        tokens = batch[:, :-1]
        return Examples(
            tokens=tokens.clamp(min=0) if is_padded else tokens, targets=batch[:, 1:], weighs_examples=is_padded
        )
    labels = batch["labels"]
    return Examples(
        tokens=batch["input_ids"],
        targets=F.pad(labels[:, 1:], (0, 1), value=IGNORED),  # nothing follows the last token
        position_ids=batch["position_ids"],
        weighs_examples=labels.dtype == torch.int32,
    )


def tokens_read(batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Return all tokens of a batch, inputs and targets, each once, and which of them are tokens.

    Returns:
        Tokens, int [batch, n], and a mask of the same shape that is False at padding; None if there is no padding. A
        padded batch of plain text is not supported.
    """
    if isinstance(batch, Tensor):
        return batch, None
    positions = batch["position_ids"]
    # a conversation has at least two tokens, so a 0 that no 1 follows is padding
    return batch["input_ids"], (positions > 0) | (F.pad(positions[:, 1:], (0, 1)) == 1)


def separate(position_ids: Tensor) -> Tensor:
    """Return which tokens of a row are in the same conversation, bool [batch, 1, seq, seq].

    Args:
        position_ids: Positions that restart at 0 in each conversation, [batch, seq].
    """
    number = (position_ids == 0).cumsum(1)
    return (number[:, :, None] == number[:, None, :]).unsqueeze(1)
