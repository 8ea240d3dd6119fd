"""How well a model predicts a text."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """How well a model predicts a text."""

    nats: float
    """Mean negative log likelihood, in nats per token."""

    num_tokens: int
    """Number of predicted tokens."""

    @property
    def perplexity(self) -> float:
        """Perplexity per token; infinite if it overflows a float."""
        return math.exp(self.nats) if self.nats < 700 else math.inf

    def bits_per_byte(self, bytes_per_token: float) -> float:
        """Bits per UTF-8 byte, which is comparable between tokenizers.

        Args:
            bytes_per_token: Mean number of UTF-8 bytes of text per token.
        """
        return self.nats / math.log(2) / bytes_per_token
