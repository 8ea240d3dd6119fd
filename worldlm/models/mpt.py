"""The MPT decoder on scaled dot product attention, with the parameter names of transformers' MptForCausalLM.

A state dict of one loads into the other unchanged, so that trained models open with `AutoModelForCausalLM`. This holds
for `expansion_ratio=4` and `alibi_bias_max=8`, the only values that the forward pass of transformers supports.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldlm.models.batches import separate

_MAX_SIZE = 100_000_000
_MAX_SIZES = {"num_blocks": 10_000}
"""Limits of sizes: larger models, even without weights, exhaust the memory or overflow integers."""


@dataclass(frozen=True, kw_only=True)  # without slots, since jsonargparse reads `vars` of a default
class Sizes:
    """Sizes of an MPT decoder (ALiBi, no biases, LayerNorm, GELU, tied head).

    All sizes without a default must be given. With none of them it describes no model: see `is_given`.

    Raises:
        ValueError: If a size is missing, below 1 or unreasonably large, or `num_heads` does not divide `d_model`.
    """

    num_blocks: int = 0
    """Number of decoder blocks."""

    d_model: int = 0
    """Width of the residual stream, a multiple of `num_heads`."""

    num_heads: int = 0
    """Number of attention heads; need not be a power of two."""

    max_seq_len: int = 0
    """Longest sequence of the attention bias, in tokens."""

    vocab_size: int = 0
    """Number of rows of the embedding, which is also the head."""

    expansion_ratio: int = 4
    """Width of the feed-forward layer divided by `d_model`."""

    alibi_bias_max: int = 8
    """The smallest slope of a head is `2 ** -alibi_bias_max`."""

    def __post_init__(self) -> None:
        if not self.is_given:
            return
        for name in asdict(self):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
            if getattr(self, name) > (largest := _MAX_SIZES.get(name, _MAX_SIZE)):
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at most {largest:,}")
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model is {self.d_model}: it must be a multiple of num_heads, {self.num_heads}")

    @property
    def is_given(self) -> bool:
        """Whether it describes a model."""
        return any((self.num_blocks, self.d_model, self.num_heads, self.max_seq_len, self.vocab_size))


def alibi_slopes(num_heads: int, alibi_bias_max: int = 8) -> Tensor:
    """Slopes of ALiBi (arXiv 2108.12409) in the order of MPT's heads.

    Args:
        num_heads: Number of heads. If it is not a power of two, a subset of the slopes of the next power is used.
        alibi_bias_max: The smallest slope is `2 ** -alibi_bias_max`.

    Returns:
        Positive slopes, shape [num_heads].
    """
    power = 2 ** math.ceil(math.log2(num_heads))
    slopes = torch.exp2(torch.arange(1, power + 1) * (-alibi_bias_max / power))
    return slopes if power == num_heads else torch.cat([slopes[1::2], slopes[::2]])[:num_heads]


def attention_bias(architecture: Sizes) -> Tensor:
    """Causal mask and ALiBi in one additive bias.

    Distances are counted from the query, so that the bias of near tokens is exact in bfloat16 too.

    Returns:
        Shape [1, num_heads, max_seq_len, max_seq_len]: minus slope times distance, `-inf` at later tokens.
    """
    position = torch.arange(architecture.max_seq_len)
    ahead = position[None, :] - position[:, None]
    slopes = alibi_slopes(architecture.num_heads, architecture.alibi_bias_max)
    bias = ahead * slopes.view(1, -1, 1, 1)
    return bias.masked_fill_(ahead > 0, -math.inf)


class LayerNorm(nn.Module):
    """Layer normalisation with a weight and no bias.

    It replaces `nn.LayerNorm(bias=False)`, on which the per-sample gradients of Opacus fail.
    """

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of [..., d_model]."""
        return F.layer_norm(x, self.weight.shape, self.weight, None, self.eps)


class Cache:
    """Keys and values of earlier tokens in every block, so that generation does not compute them again."""

    def __init__(self) -> None:
        self._blocks: dict[Attention, tuple[Tensor, Tensor]] = {}

    @property
    def num_tokens(self) -> int:
        """Number of cached tokens."""
        return next((key.shape[2] for key, _ in self._blocks.values()), 0)

    def add(self, block: Attention, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values of new tokens, each [batch, num_heads, seq, d_head]; return those of all tokens."""
        if block in self._blocks:
            cached = self._blocks[block]
            key, value = torch.cat([cached[0], key], 2), torch.cat([cached[1], value], 2)
        self._blocks[block] = key, value
        return key, value


class Attention(nn.Module):
    """Multi-head self-attention; the caller passes the biases of all heads."""

    def __init__(self, architecture: Sizes) -> None:
        super().__init__()
        d_model = architecture.d_model
        self.num_heads = architecture.num_heads
        self.Wqkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, bias: Tensor, cache: Cache | None = None) -> Tensor:
        """Attend: x is [batch, seq, d_model], bias [1 or batch, num_heads, seq, cached + seq]; returns x's shape."""
        heads = self.Wqkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        if cache is not None:
            key, value = cache.add(self, key, value)
        # attention fails on an empty batch, which Poisson sampling may draw, in bf16 on a GPU
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias) if len(x) else value
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, architecture: Sizes) -> None:
        super().__init__()
        width = architecture.expansion_ratio * architecture.d_model
        self.up_proj = nn.Linear(architecture.d_model, width, bias=False)
        self.down_proj = nn.Linear(width, architecture.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, seq, d_model] to the same shape."""
        out: Tensor = self.down_proj(F.gelu(self.up_proj(x)))
        return out


class Block(nn.Module):
    """One pre-norm decoder block."""

    def __init__(self, architecture: Sizes) -> None:
        super().__init__()
        self.norm_1 = LayerNorm(architecture.d_model)
        self.attn = Attention(architecture)
        self.norm_2 = LayerNorm(architecture.d_model)
        self.ffn = FeedForward(architecture)

    def forward(self, x: Tensor, bias: Tensor, cache: Cache | None = None) -> Tensor:
        """Map [batch, seq, d_model] to the same shape; bias and cache as in `Attention`."""
        x = x + self.attn(self.norm_1(x), bias, cache)
        out: Tensor = x + self.ffn(self.norm_2(x))
        return out


class Decoder(nn.Module):
    """Embedding, blocks and final norm, as MptModel in transformers."""

    bias: Tensor

    def __init__(self, architecture: Sizes) -> None:
        super().__init__()
        self.wte = nn.Embedding(architecture.vocab_size, architecture.d_model)
        self.blocks = nn.ModuleList(Block(architecture) for _ in range(architecture.num_blocks))
        self.norm_f = LayerNorm(architecture.d_model)
        self.register_buffer("bias", attention_bias(architecture), persistent=False)

    def forward(self, tokens: Tensor, cache: Cache | None = None, position_ids: Tensor | None = None) -> Tensor:
        """Map tokens [batch, seq] to hidden states [batch, seq, d_model]; arguments as in `MPT`."""
        x = self.wte(tokens)
        bias = self._bias_for(x, cache.num_tokens if cache else 0)
        if position_ids is not None:
            bias = bias.masked_fill(~separate(position_ids), -math.inf)
        for block in self.blocks:
            x = block(x, bias, cache)
        hidden: Tensor = self.norm_f(x)
        return hidden

    def _bias_for(self, x: Tensor, start: int = 0) -> Tensor:
        """Return the bias for the tokens of x, which begin at `start`, in the precision of attention.

        It is cast once per step, because autocast would cast it again in every block.
        """
        kind, length = x.device.type, start + x.shape[1]
        if length > self.bias.shape[-1]:
            raise ValueError(f"the sequence has {length} tokens: max_seq_len is {self.bias.shape[-1]}")
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        return self.bias[..., start:length, :length].to(dtype)


class MPT(nn.Module):
    """MPT language model whose head and embedding share the same Parameter.

    Matrices are initialised from normal(0, 0.02), norms with one. Per-sample gradients through the hooks of Opacus are
    correct for every parameter, the tied one included, because the head is a separate module.

    Args:
        architecture: The model's sizes.
    """

    def __init__(self, architecture: Sizes) -> None:
        super().__init__()
        self.architecture = architecture
        self.transformer = Decoder(architecture)
        # On meta, because its own weight is replaced at once and need not be initialised.
        self.lm_head = nn.Linear(architecture.d_model, architecture.vocab_size, bias=False, device="meta")
        self.lm_head.weight = self.transformer.wte.weight
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, cache: Cache | None = None, position_ids: Tensor | None = None) -> Tensor:
        """Score every next token.

        Args:
            tokens: Token ids, int [batch, seq]; batch may be 0.
            cache: The cache of earlier tokens, to which these are added; None if these tokens are the whole text.
            position_ids: Without a cache: positions that restart at 0 in each conversation of a row, [batch, seq], so
                that attention keeps them apart. The mask then has batch x num_heads x seq x seq numbers.

        Returns:
            Logits, [batch, seq, vocab_size].

        Raises:
            ValueError: If there are more tokens than `max_seq_len`, cached tokens included.
        """
        logits: Tensor = self.lm_head(self.transformer(tokens, cache, position_ids))
        return logits
