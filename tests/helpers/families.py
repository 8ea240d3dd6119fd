"""Tiny models of the families of transformers, by name."""

from __future__ import annotations

from typing import Any

import torch

from worldlm.models import LanguageModule, OptimizerSettings, Split, Transformer

_SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
_LIKE_LLAMA: dict[str, Any] = {**_SIZES, "intermediate_size": 64, "num_key_value_heads": 1}
_GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 64, "vocab_size": 64, "n_inner": 64}

CONFIGS: dict[str, dict[str, Any]] = {
    "gemma": {"model_type": "gemma", "head_dim": 16, **_LIKE_LLAMA},
    "gemma3": {"model_type": "gemma3_text", "head_dim": 16, **_LIKE_LLAMA},
    "gpt2": {"model_type": "gpt2", "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, **_GPT2},
    "gpt_neox": {"model_type": "gpt_neox", "intermediate_size": 64, **_SIZES},
    "llama": {"model_type": "llama", "tie_word_embeddings": True, **_LIKE_LLAMA},
    "llama_untied": {"model_type": "llama", "tie_word_embeddings": False, **_LIKE_LLAMA},
    "mistral": {"model_type": "mistral", **_LIKE_LLAMA},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 2, **_LIKE_LLAMA},
    "mpt": {"model_type": "mpt", "d_model": 32, "n_layers": 3, "n_heads": 2, "max_seq_len": 64, "vocab_size": 64},
    "olmo2": {"model_type": "olmo2", **_LIKE_LLAMA},
    "phi3": {"model_type": "phi3", "pad_token_id": None, **_LIKE_LLAMA},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True, **_LIKE_LLAMA},
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True, **_LIKE_LLAMA},
    "smollm3": {"model_type": "smollm3", "pad_token_id": None, **_LIKE_LLAMA},
}


def tiny_module(family: str, vocab_size: int = 32, seq_len: int = 8) -> LanguageModule:
    """Return a newly initialised model, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LanguageModule(
            split=Split(last_blocks=1),
            optimizer=OptimizerSettings(lr=1e-2, warmup_steps=1),
            transformer=Transformer(config={**CONFIGS[family], "vocab_size": vocab_size}, max_seq_len=seq_len),
        )
