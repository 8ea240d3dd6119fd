"""Configurations of transformers: reading them, and finding the mistakes that transformers itself does not report."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from worldlm.topology.errors import first_line, suggest

_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
"""What a configuration that is written by hand must state, by transformers' common names. A missing size would take
the default of the family's largest model."""

_WITHOUT_EFFECT = {
    "_name_or_path", "architectures", "attention_dropout", "attn_pdrop", "bos_token_id", "dtype", "embd_pdrop",
    "eos_token_id", "hidden_dropout", "max_position_embeddings", "pad_token_id", "resid_pdrop", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip
"""Keys of a configuration that no weight depends on."""

_FORMER = (
    "partial_rotary_factor", "rope_local_base_freq", "rope_scaling", "rope_theta", "rotary_emb_base", "rotary_pct",
)  # fmt: skip
"""Keys in most folders, which transformers now converts into `rope_parameters`."""

_MAX_COUNT = 10_000
"""The largest number of blocks, or of experts. Each of them takes time to build, even without any memory."""

FROM_ELSEWHERE = ("auto_map", "quantization_config")
"""Keys of a configuration that need code, or weights, that transformers does not have."""


def family_of(model_type: str) -> Any:
    """Return the configuration class of a family of causal language models.

    Raises:
        ValueError: If transformers has no such family.
    """
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if model_type not in known:
        raise ValueError(
            f"transformer.config has the model_type {model_type!r}, of which transformers has no causal language model"
            f"{suggest(model_type, known)}"
        )
    return CONFIG_MAPPING[model_type]


def check_keys(content: Mapping[str, Any]) -> None:
    """Check a configuration that was written by hand, since transformers takes any key, and has a value for any size.

    Raises:
        ValueError: With one line for each mistake.
    """
    if "model_type" not in content:
        raise ValueError("transformer.config needs a model_type, such as llama")
    family = family_of(str(content["model_type"]))
    default, aliases = family(), dict(family.attribute_map)
    known = {*_as_plain(default), *aliases, "model_type", *FROM_ELSEWHERE}
    if "rope_parameters" in known:
        known |= {*_FORMER}
    mistakes = [
        f"transformer.config has the key {key!r}, which {family.model_type} does not know{suggest(key, known)}"
        for key in content
        if key not in known and key not in _WITHOUT_EFFECT
    ]
    for size in _SIZES:
        names = {size, aliases.get(size, size)}
        if getattr(default, size, None) is not None and names.isdisjoint(content):
            mistakes.append(f"transformer.config needs {aliases.get(size, size)}")
    if mistakes:
        raise ValueError("\n".join(mistakes))


def complete(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration from a file with all sizes, and without the keys that its family does not know.

    Keys of former versions of transformers, such as `rope_theta`, are replaced by those that they are converted into.

    Raises:
        ValueError: If transformers cannot use it.
    """
    if "model_type" not in content:
        raise ValueError("transformer.config needs a model_type, such as llama")
    family = family_of(str(content["model_type"]))
    default, aliases = _as_plain(family()), dict(family.attribute_map)
    config = make_config(content)
    sizes = {size: getattr(config, size) for size in _SIZES if getattr(config, size, None) is not None}
    given = {key: value for key, value in content.items() if key in {*default, *aliases, "model_type", *FROM_ELSEWHERE}}
    converted = {
        key: value
        for key, value in _as_plain(config).items()
        if key in default and value != default[key] and key not in _WITHOUT_EFFECT
        if key not in given or key == "rope_parameters"  # which takes other keys too
    }
    missing = {size: value for size, value in sizes.items() if {size, aliases.get(size, size)}.isdisjoint(given)}
    return {**given, **missing, **converted}


def make_config(content: Mapping[str, Any]) -> Any:
    """Return the configuration of transformers with some content.

    Raises:
        ValueError: If transformers cannot use it.
    """
    for key, value in content.items():
        if re.search(r"^(n|num)_.*(layers?|experts?|blocks?)$", key) and isinstance(value, int) and value > _MAX_COUNT:
            raise ValueError(f"transformer.config has {key} {value}: it can be at most {_MAX_COUNT:,}")
    # the implementation of attention may name a kernel on a hub, and precision is set by the trainer
    kept = {k: v for k, v in content.items() if "attn_implementation" not in k and k != "torch_dtype"}
    family = family_of(str(content.get("model_type")))
    with config_errors():
        config = family.from_dict({**kept, "dtype": "float32"})
    config.use_cache = False
    return config


@contextmanager
def config_errors() -> Iterator[None]:
    """Convert an error that transformers raises for a configuration, of any class, into one line.

    Raises:
        ValueError: Instead of any error but a lack of memory.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        text = str(error)
        if isinstance(error, RuntimeError) and re.search("allocate|out of memory", text):
            raise
        if type(error).__name__.startswith("StrictDataclass"):  # the last line has the reason
            text = text.strip().splitlines()[-1].strip().partition(": ")[2]
        else:
            text = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"transformers cannot use transformer.config: {text[:300]}") from error


def _as_plain(config: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    return values


def shaping_values(config: Any) -> dict[str, Any]:
    """Return the values of a configuration on which weights may depend."""
    from transformers import PretrainedConfig

    of_all = PretrainedConfig().to_dict().keys()  # a configuration within another one has these too, or not
    values = {name: value for name, value in _as_plain(config).items() if name not in _WITHOUT_EFFECT}
    return {
        name: {key: item for key, item in value.items() if key not in of_all} if isinstance(value, dict) else value
        for name, value in values.items()
    }
