"""Generating text, one token at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from worldlm.models.module import LanguageModule


class NotFiniteError(ValueError):
    """The logits of a model are not finite, because it has diverged."""


@torch.no_grad()
def generate(
    module: LanguageModule,
    tokens: Tensor,
    *,
    num_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continue a text, in evaluation mode and without gradients.

    Every token is drawn from the model's distribution given the last `max_seq_len` tokens. Random numbers are drawn on
    the CPU from `generator`, so that the same seed and the same logits give the same text on any device.

    Args:
        module: The model; its training mode is restored.
        tokens: The text to continue, int64 [seq], at least one token.
        num_new_tokens: Tokens to add, at least 0.
        temperature: Divides the logits; 0 always takes the most likely token, and the first one of equals.
        top_k: Draw among this number of most likely tokens; None draws among all.
        generator: Random generator on the CPU; by default torch's global one.

    Returns:
        The text with its continuation, int64 [seq + num_new_tokens], on the CPU.

    Raises:
        ValueError: If there is no token to continue, a token is outside the model's vocabulary, or a setting is out of
            range.
        NotFiniteError: If the model's logits are NaN or infinite.
    """
    _check(module, tokens, num_new_tokens, temperature, top_k)
    text = torch.empty(len(tokens) + num_new_tokens, dtype=torch.int64)
    text[: len(tokens)] = tokens
    was_training = module.training
    module.eval()
    try:
        cache, max_seq_len = module.architecture.new_cache(), module.architecture.max_seq_len
        for end in range(len(tokens), len(text)):
            fits = end <= max_seq_len  # otherwise the cached keys and values would depend on dropped tokens
            start = cache.num_tokens if fits else end - max_seq_len
            logits = module(text[start:end].unsqueeze(0).to(module.device), cache if fits else None)[0, -1]
            text[end] = next_token(logits.float().cpu(), temperature, top_k, generator)
    finally:
        module.train(was_training)
    return text


def next_token(
    logits: Tensor, temperature: float, top_k: int | None = None, generator: torch.Generator | None = None
) -> int:
    """Choose a token by its logits, float32 [vocab_size]; settings as in `generate`.

    Raises:
        NotFiniteError: If a logit is NaN or infinity.
    """
    if not math.isfinite(logits.max()):  # the maximum is NaN if a logit is
        raise NotFiniteError("the model has diverged: its logits are not finite")
    if temperature == 0:
        return int(logits.argmax())
    top_logits, top_tokens = logits.topk(min(top_k or len(logits), len(logits)))
    probabilities = ((top_logits - top_logits[0]) / temperature).softmax(-1)
    return int(top_tokens[torch.multinomial(probabilities, 1, generator=generator)])


def _check(module: LanguageModule, tokens: Tensor, num_new_tokens: int, temperature: float, top_k: int | None) -> None:
    if tokens.dim() != 1 or len(tokens) == 0:
        raise ValueError(f"tokens has the shape {list(tokens.shape)}: it must be a vector of at least one token")
    vocab_size = module.architecture.vocab_size
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        raise ValueError(
            f"tokens go from {int(tokens.min())} to {int(tokens.max())}: the vocabulary is 0 to {vocab_size - 1}"
        )
    if num_new_tokens < 0:
        raise ValueError(f"num_new_tokens is {num_new_tokens}: it must be at least 0")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}: it must be a number of at least 0")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}: it must be at least 1")
