"""Checks that a model is causal: transformers builds some that are not, such as BERT, and only prints a warning."""

from __future__ import annotations

import torch
from torch import nn

from worldlm.models.transformer import Transformer


@torch.no_grad()
def check_causal(transformer: Transformer, model: nn.Module) -> None:
    """Check that a token does not change the scores of those before it.

    Args:
        transformer: Describes the model.
        model: What it built.

    Raises:
        ValueError: If a token does, as in BERT without `is_decoder: true`.
    """
    was_training, device = model.training, next(model.parameters()).device
    tokens = torch.tensor([[0, 0], [0, min(1, transformer.vocab_size - 1)]], device=device)
    scores = transformer.logits(model.eval(), tokens)
    model.train(was_training)
    if not torch.allclose(scores[0, 0], scores[1, 0], rtol=1e-4, atol=1e-6):
        raise ValueError(
            f"transformer.config describes a {transformer.model_type} that also reads the tokens after the one that it "
            "predicts, so its perplexity would mean nothing: most such families have is_decoder: true"
        )
