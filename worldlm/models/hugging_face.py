"""Folders of Hugging Face MPT models: the configuration of ours, and the weights of theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldlm.models.mpt import Architecture

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_HEAD = "lm_head.weight"
_PREFIX = "model."
"""What the module's parameter names begin with, and transformers' do not."""
_ATTENTION = {
    "attn_type": "multihead_attention",
    "clip_qkv": None,
    "softmax_scale": None,
    "prefix_lm": False,
    "qk_ln": False,
    "alibi": True,
    "alibi_bias_max": 8,
}
_REST = {
    "expansion_ratio": 4,
    "layer_norm_epsilon": 1e-5,
    "logit_scale": None,
    "no_bias": True,
    "tie_word_embeddings": True,
}
"""What transformers' forward pass can vary, or a checkpoint can ask for, and ours has one value for."""


def mpt_config(architecture: Architecture) -> dict[str, Any]:
    """Return the content of a `config.json` with which transformers' MPT computes what ours does.

    Raises:
        ValueError: If transformers' MPT cannot, with every size that is in the way.
    """
    fixed = {"expansion_ratio": _REST["expansion_ratio"], "alibi_bias_max": _ATTENTION["alibi_bias_max"]}
    wrong = [
        f"{name} is {getattr(architecture, name)}: transformers' MPT knows {value} alone"
        for name, value in fixed.items()
        if getattr(architecture, name) != value
    ]
    if wrong:
        raise ValueError("\n".join(wrong))
    return {
        "architectures": ["MptForCausalLM"],
        "model_type": "mpt",
        "n_layers": architecture.num_blocks,
        "d_model": architecture.d_model,
        "n_heads": architecture.num_heads,
        "max_seq_len": architecture.max_seq_len,
        "vocab_size": architecture.vocab_size,
        **_REST,
        "attn_config": {**_ATTENTION, "attn_pdrop": 0},
        "learned_pos_emb": False,
        "emb_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "torch_dtype": "float32",
        "use_cache": True,
    }


def their_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the module's weights as transformers does; the tied head stays out, as it is the embedding."""
    return {name.removeprefix(_PREFIX): tensor for name, tensor in weights.items()}


def read_folder(folder: Path, architecture: Architecture) -> dict[str, Tensor]:
    """Read the weights of a Hugging Face MPT folder, if the model is of this architecture.

    `max_seq_len` may differ: with ALiBi no weight depends on it.

    Returns:
        float32, by the names of the module's parameters.

    Raises:
        ValueError: If it is no such folder, or another architecture, with every difference; one line each.
    """
    check_config(folder, architecture)
    weights = _read_weights(folder)
    tied = weights.pop(_HEAD, None)
    if tied is not None and not torch.equal(tied, weights.get("transformer.wte.weight", torch.empty(0))):
        raise ValueError(f"{folder}: the head's weights are not the embedding's, which they are here")
    return {f"{_PREFIX}{name}": tensor.float() for name, tensor in weights.items()}


def check_config(folder: Path, architecture: Architecture) -> None:
    """Check what the `config.json` of a folder says.

    Raises:
        ValueError: As `read_folder`.
    """
    config = _read_json(folder / CONFIG)
    if config.get("model_type") != "mpt":
        raise ValueError(f"{folder}: the model is of the type {config.get('model_type')!r}, and not 'mpt'")
    sizes = {"n_layers": "num_blocks", "d_model": "d_model", "n_heads": "num_heads", "vocab_size": "vocab_size"}
    wrong = [
        f"{folder}: {theirs} is {config.get(theirs)}, {ours} is {getattr(architecture, ours)} here"
        for theirs, ours in sizes.items()
        if config.get(theirs) != getattr(architecture, ours)
    ]
    attention = config.get("attn_config") or {}
    ours = {**_ATTENTION, "alibi_bias_max": architecture.alibi_bias_max}
    rest = {**_REST, "expansion_ratio": architecture.expansion_ratio}
    for found, known in ((config, rest), (attention, ours)):
        different = {name: value for name, value in known.items() if found.get(name, _default(name)) != value}
        wrong += [f"{folder}: {name} is {found.get(name)}, it is {value} here" for name, value in different.items()]
    if wrong:
        raise ValueError("\n".join(wrong))


def _default(name: str) -> Any:
    """Return what transformers takes where a configuration says nothing."""
    return {**_REST, **_ATTENTION}[name]


def _read_weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    files = [folder / WEIGHTS]
    if not files[0].is_file() and (folder / _INDEX).is_file():
        names = sorted(set(_read_json(folder / _INDEX)["weight_map"].values()))
        if strangers := [name for name in names if Path(name).name != name]:
            raise ValueError(f"{folder / _INDEX}: {strangers[0]!r} is not in this folder")
        files = [folder / name for name in names]
    if missing := [file for file in files if not file.is_file()]:
        raise ValueError(f"{missing[0]} is not there{_advice(folder)}")
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights |= load_file(file)
        except Exception as error:  # the reader raises an exception of its own
            raise ValueError(f"{file} cannot be read as safetensors: {error}") from error
    return weights


def _advice(folder: Path) -> str:
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if not pickles:
        return ""
    return (
        f"; {pickles[0]} is a pickle, which may run anything when it is read: write safetensors with transformers, "
        "where you trust it: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(ANOTHER)"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is not there") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content
