"""How well a model predicts a text."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import move_data_to_device

from worldlm.models.batches import Batch, read_batch


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


@torch.no_grad()
def evaluate(module: LightningModule, batches: Iterable[Batch]) -> Evaluation:
    """Measure a model on a text, in evaluation mode and without gradients.

    It runs in the autocast context of the caller and does not communicate with other processes.

    Args:
        module: The model; it returns logits, see `worldlm.models.LanguageModule.forward`.
        batches: See `worldlm.models.batches`; they are moved to the module's device.

    Returns:
        Nats per token; infinite if the probability of a token rounds to zero in float32.

    Raises:
        ValueError: If there is no token to predict.
    """
    was_training = module.training
    # the sums and the order of torchmetrics.text.Perplexity, which would import scipy and transformers
    nats, num_tokens = torch.zeros((), dtype=torch.float64, device=module.device), 0
    module.eval()
    try:
        for batch in batches:
            examples = read_batch(move_data_to_device(batch, module.device))
            logits = module(examples.tokens, position_ids=examples.position_ids).float().flatten(0, 1)
            targets = examples.targets.reshape(-1, 1)
            if not examples.predicts_all:
                is_target = targets[:, 0] >= 0
                logits, targets = logits[is_target], targets[is_target].long()
            nats -= F.softmax(logits, dim=1).gather(1, targets).log().sum()
            num_tokens += len(targets)
    finally:
        module.train(was_training)
    if num_tokens == 0:
        raise ValueError("there are no tokens to evaluate: the text is empty")
    return Evaluation(nats=float(nats) / num_tokens, num_tokens=num_tokens)
