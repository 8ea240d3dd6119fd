"""Text from a model, one token after another."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from worldlm.models.module import LanguageModule
from worldlm.models.mpt import Cache


class NotFiniteError(ValueError):
    """A model has diverged: there is no likeliest token."""


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

    Every token is drawn from what the model makes of the last `max_seq_len` tokens before it. All that is random is
    drawn on the CPU from `generator`, so that the same seed gives the same text wherever the logits are the same.

    Args:
        module: The model; its mode is left as it was.
        tokens: The text so far, int64 [seq], at least one token.
        num_new_tokens: Tokens to add, at least 0.
        temperature: Divides the logits; 0 always takes the likeliest token, of equals the first.
        top_k: Draw among so many likeliest tokens; None: among all.
        generator: Source of chance, on the CPU; by default torch's own.

    Returns:
        The text with its continuation, int64 [seq + num_new_tokens], on the CPU.

    Raises:
        ValueError: If there is no token to go on from, a token that the model does not know, or a setting out of
            range.
        NotFiniteError: If the model's logits are NaN or infinite.
    """
    _check(module, tokens, num_new_tokens, temperature, top_k)
    text = torch.empty(len(tokens) + num_new_tokens, dtype=torch.int64)
    text[: len(tokens)] = tokens
    was_training = module.training
    module.eval()
    try:
        cache, most = Cache(), module.architecture.max_seq_len
        for end in range(len(tokens), len(text)):
            fits = end <= most  # else what stood before the tokens that fit would be in all that the cache holds
            start = cache.num_tokens if fits else end - most
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
    if not math.isfinite(logits.max()):  # which is NaN where one is
        raise NotFiniteError("the model has diverged: its logits are not finite")
    if temperature == 0:
        return int(logits.argmax())
    likeliest, numbers = logits.topk(min(top_k or len(logits), len(logits)))
    probabilities = ((likeliest - likeliest[0]) / temperature).softmax(-1)
    return int(numbers[torch.multinomial(probabilities, 1, generator=generator)])


def _check(module: LanguageModule, tokens: Tensor, num_new_tokens: int, temperature: float, top_k: int | None) -> None:
    if tokens.dim() != 1 or len(tokens) == 0:
        raise ValueError(f"tokens has the shape {list(tokens.shape)}: it must be one text of at least one token")
    known = module.architecture.vocab_size
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < known:
        raise ValueError(f"tokens go from {int(tokens.min())} to {int(tokens.max())}: the model knows 0 to {known - 1}")
    if num_new_tokens < 0:
        raise ValueError(f"num_new_tokens is {num_new_tokens}: it must be at least 0")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}: it must be a number of at least 0")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}: it must be at least 1")
