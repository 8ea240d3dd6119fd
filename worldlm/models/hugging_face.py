"""Folders of Hugging Face MPT models: writing their configuration and reading their weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldlm.federation.type_checks import matches_type
from worldlm.files.regular import check_regular
from worldlm.models.mpt import Sizes
from worldlm.topology.errors import native_errors

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""Files of adapters, as peft names them."""
INDEX = "model.safetensors.index.json"
_HEAD = "lm_head.weight"
_PREFIX = "model."
"""Prefix of the module's parameter names, which is missing in transformers."""
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
"""Options of transformers' MPT, or of a checkpoint, for which this model has a fixed value."""


def mpt_config(architecture: Sizes) -> dict[str, Any]:
    """Return the content of a `config.json` with which transformers' MPT computes the same as this model.

    Raises:
        ValueError: If transformers' MPT does not support a size; the message has one line for each.
    """
    fixed = {"expansion_ratio": _REST["expansion_ratio"], "alibi_bias_max": _ATTENTION["alibi_bias_max"]}
    unsupported = [
        f"{name} is {getattr(architecture, name)}: transformers' MPT supports only {value}"
        for name, value in fixed.items()
        if getattr(architecture, name) != value
    ]
    if unsupported:
        raise ValueError("\n".join(unsupported))
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


def write_folder(folder: Path, architecture: Sizes, weights: Mapping[str, Tensor], eos_token_id: int | None) -> None:
    """Write config and weights; the tied head is left out, because it is the embedding. See `Architecture`."""
    from safetensors.torch import save_file

    config = mpt_config(architecture) | ({} if eos_token_id is None else {"eos_token_id": eos_token_id})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    theirs = {name.removeprefix(_PREFIX): tensor.contiguous() for name, tensor in weights.items()}
    save_file(theirs, folder / WEIGHTS, metadata={"format": "pt"})


def read_folder(folder: Path, architecture: Sizes) -> dict[str, Tensor]:
    """Read the weights of a Hugging Face MPT folder, whose model must have this architecture.

    `max_seq_len` may differ, because with ALiBi no weight depends on it.

    Returns:
        float32 tensors, by the names of the module's parameters.

    Raises:
        ValueError: If the folder is not an MPT model, or for another architecture, with one line per difference.
    """
    check_config(folder, architecture)
    weights = _read_weights(folder)
    tied = weights.pop(_HEAD, None)
    if tied is not None and not torch.equal(tied, weights.get("transformer.wte.weight", torch.empty(0))):
        raise ValueError(f"{folder}: the weights of the head and the embedding differ, but this model ties them")
    return {f"{_PREFIX}{name}": tensor.float() for name, tensor in weights.items()}


def check_config(folder: Path, architecture: Sizes) -> None:
    """Check the `config.json` of a folder.

    Raises:
        ValueError: As `read_folder`.
    """
    config = read_json(folder / CONFIG)
    if config.get("model_type") != "mpt":
        raise ValueError(f"{folder}: the type of the model is {config.get('model_type')!r}, not 'mpt'")
    sizes = {"n_layers": "num_blocks", "d_model": "d_model", "n_heads": "num_heads", "vocab_size": "vocab_size"}
    mistakes = [
        f"{folder}: {theirs} is {config.get(theirs)}, but {ours} of the model is {getattr(architecture, ours)}"
        for theirs, ours in sizes.items()
        if config.get(theirs) != getattr(architecture, ours)
    ]
    attention = config.get("attn_config") or {}
    fixed_attention = {**_ATTENTION, "alibi_bias_max": architecture.alibi_bias_max}
    fixed_rest = {**_REST, "expansion_ratio": architecture.expansion_ratio}
    for options, required in ((config, fixed_rest), (attention, fixed_attention)):
        different = {name: value for name, value in required.items() if options.get(name, _default(name)) != value}
        mistakes += [
            f"{folder}: {name} is {options.get(name)}, but the model needs {value}" for name, value in different.items()
        ]
    if mistakes:
        raise ValueError("\n".join(mistakes))


def _default(name: str) -> Any:
    """Return the default of transformers for an option that is missing in a configuration."""
    return {**_REST, **_ATTENTION}[name]


def _read_weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    files = [folder / WEIGHTS]
    if not files[0].is_file() and (folder / INDEX).is_file():
        files = indexed_files(folder)
    if missing := [file for file in files if not file.is_file()]:
        raise ValueError(f"{missing[0]} does not exist{advice(folder)}")
    weights: dict[str, Tensor] = {}
    for file in files:
        with native_errors(f"{file} cannot be read as safetensors"):
            weights |= load_file(check_regular(file))
    return weights


def indexed_files(folder: Path) -> list[Path]:
    """Return the files that a folder's index names.

    Raises:
        ValueError: If the index is no index, or names a file that is not safetensors of the folder.
    """
    path = folder / INDEX
    return [folder / name for name in shard_names(read_json(path), str(path), "this folder")]


def shard_names(index: Any, title: str, place: str) -> list[str]:
    """Return the names of the files with weights in the content of an index.

    Args:
        index: Its content, which may be anything.
        title: The index, for errors.
        place: What has the index and the files, for errors.

    Raises:
        ValueError: If the content is no index, or names a file that is not safetensors of this place.
    """
    weight_map: Any = index.get("weight_map") if isinstance(index, dict) else None
    if not matches_type(weight_map, dict[str, str]):
        raise ValueError(f"{title} does not say which files have the weights")
    names = sorted({*weight_map.values()})
    if wrong := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
        raise ValueError(f"{title} names {wrong[0]!r}, which is no safetensors file of {place}")
    return names


def advice(folder: Path) -> str:
    """Return what to do if a folder has weights, but not as safetensors; empty if it has none."""
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if not pickles:
        return ""
    return (
        f"; {pickles[0]} is a pickle, which may run any code when it is read: if you trust it, write safetensors with "
        "transformers: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(ANOTHER)"
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: If the file does not exist, cannot be read, or holds anything else.
    """
    try:
        content = json.loads(check_regular(path).read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except RecursionError:
        raise ValueError(f"{path} cannot be read: it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object")
    return content
