"""Tiny models of the families of transformers, by name."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from worldlm.models import LanguageModule, Lora, OptimizerSettings, Split, Transformer

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


def tiny_module(
    family: str, vocab_size: int = 32, seq_len: int = 8, *, seed: int = 0, lr: float = 1e-2, warmup_steps: int = 1
) -> LanguageModule:
    """Return a newly initialised model with the weights of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LanguageModule(
            split=Split(last_blocks=1),
            optimizer=OptimizerSettings(lr=lr, warmup_steps=warmup_steps),
            transformer=Transformer(config={**CONFIGS[family], "vocab_size": vocab_size}, max_seq_len=seq_len),
        )


def write_base(folder: Path, name: str, seed: int = 0, **changes: Any) -> LanguageModule:
    """Write a folder with a model whose weights, biases and norms are all random, and return the model."""
    architecture = Transformer(config={**CONFIGS[name], **changes}, max_seq_len=8)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = LanguageModule(transformer=architecture)
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    folder.mkdir(parents=True, exist_ok=True)
    architecture.write_folder(folder, dict(module.named_parameters()))
    return module.eval()


def adapted(folder: Path, lora: Lora, *, sizes: Path | None = None, seed: int = 0) -> LanguageModule:
    """Return a model with adapters on the frozen model in a folder; the folder `sizes`, if given, describes it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LanguageModule(
            split=Split(last_blocks=1),
            optimizer=OptimizerSettings(lr=1e-2, warmup_steps=1),
            transformer=Transformer(config=str(sizes or folder), max_seq_len=8),
            lora=lora,
            init_from=str(folder),
        )


def open_with_peft(base: Path, adapter: Path) -> Any:
    """Open a folder of adapters with peft, on the model in another folder. Without peft, the test is skipped."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # of peft's calls of transformers
        return peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)


def check_example_gradients(module: Any, tokens: torch.Tensor) -> None:
    """Compare the per-sample gradients of Opacus with one backward pass for each example; also of an empty batch."""
    from opacus import GradSampleModule

    expected = []
    for example in tokens.split(1):
        module.zero_grad()
        module.loss(example).backward()
        expected.append({key: p.grad.clone() for key, p in module.named_parameters() if p.grad is not None})
    module.zero_grad()
    hooks = GradSampleModule(module.model, batch_first=True, loss_reduction="mean")
    module.loss(tokens).backward()
    for key, parameter in module.named_parameters():
        for sample, alone in zip(parameter.grad_sample, expected, strict=True):
            assert (sample - alone[key]).norm() <= 1e-5 * alone[key].norm() + 1e-9, key
    for parameter in module.parameters():
        parameter.grad_sample = None
    module.loss(tokens[:0]).backward()
    assert all(not parameter.grad_sample.any() for parameter in module.parameters())
    hooks.to_standard_module()
