"""Any causal language model of transformers, described by its configuration. Code from elsewhere is never run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldlm.models.hub import fetch_model, is_hub_name
from worldlm.models.hugging_face import CONFIG, read_json
from worldlm.models.transformer_config import (
    FROM_ELSEWHERE,
    check_keys,
    complete,
    config_errors,
    make_config,
    shaping_values,
)
from worldlm.models.transformer_folder import read_model
from worldlm.topology.errors import check_choice, join_names

PREFIX = "model."
"""Prefix of the module's parameter names, which is missing in transformers."""

_EXAMPLE_GRADIENTS = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3")
"""Families for which the per-sample gradients of Opacus were compared with one backward pass for each sample."""

_EXAMPLE_GRADIENTS_OF_ADAPTERS = (*_EXAMPLE_GRADIENTS, "gemma", "gemma3_text", "olmo2", "phi3", "smollm3")
"""The same for adapters. Other families may have experts that are linear layers, whose inputs are no whole samples."""

_SEPARATING = (
    "gemma", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "mixtral", "olmo2", "phi3", "qwen2", "qwen3",
    "smollm3",
)  # fmt: skip
"""Families whose attention was compared with that of each conversation of a row alone. It depends on positions that
restart, which some families, such as transformers' MPT, do not take."""


_ATTENTION = ("sdpa", "eager", "flash_attention_2")


@dataclass(frozen=True, kw_only=True)  # without slots, since jsonargparse reads `vars` of a default
class Transformer:
    """A causal language model of transformers. Its weights are random, unless `init_from` names some.

    Without `config` it describes no model: see `is_given`.

    Raises:
        ValueError: If transformers has no such model, the configuration is incomplete, has unknown keys or needs code
            from elsewhere, or `max_seq_len` is missing, or longer than the model's positions.
    """

    config: str | dict[str, Any] | None = None
    """A folder with a `config.json`, a model of the Hub, `owner/name@revision`, or the content of its `config.json`:
    `model_type` and sizes. Checkpoints contain the content."""

    max_seq_len: int = 0
    """Length of the sequences to train on, in tokens."""

    attention: str | None = None
    """Implementation of attention: `sdpa` (torch's `scaled_dot_product_attention`, the default where a family has it),
    `eager`, or `flash_attention_2`, which needs the package flash_attn, a GPU and `trainer.precision: bf16-mixed`."""

    def __post_init__(self) -> None:
        if not self.is_given:
            if self.max_seq_len:
                raise ValueError("transformer.config is missing: name a folder with a config.json, or its content")
            return
        if self.max_seq_len < 1:
            raise ValueError(f"transformer.max_seq_len is {self.max_seq_len}: it must be at least 1")
        if self.attention is not None:
            check_choice("transformer.attention", self.attention, _ATTENTION)
            if self.attention.startswith("flash") and find_spec("flash_attn") is None:  # else a hub would be asked
                raise ValueError(f"transformer.attention is {self.attention}: it needs the package flash_attn")
        if isinstance(self.config, str):
            folder = Path(self.config).expanduser()
            if is_hub_name(self.config) and not folder.exists():
                try:
                    folder = fetch_model(self.config, weights=False)
                except ValueError as error:
                    raise ValueError(f"transformer.config is {self.config}: {error}") from error
            if not (folder / CONFIG).is_file():
                kinds = f"a folder with a {CONFIG}, or a name on the Hugging Face Hub, OWNER/NAME@REVISION"
                raise ValueError(f"transformer.config is {self.config}: it must be {kinds}")
            object.__setattr__(self, "config", complete(read_json(folder / CONFIG)))
        else:
            check_keys(self._content)
        if found := [name for name in FROM_ELSEWHERE if name in self._content]:
            raise ValueError(f"transformer.config has {found[0]}: only models that transformers itself has can be used")
        positions = getattr(self.hf_config(), "max_position_embeddings", None)
        if positions is not None and self.max_seq_len > positions:
            raise ValueError(f"transformer.max_seq_len is {self.max_seq_len}: the model has {positions} positions")

    @property
    def is_given(self) -> bool:
        """Whether it describes a model."""
        return self.config is not None

    @property
    def _content(self) -> dict[str, Any]:
        assert isinstance(self.config, dict), "a folder was replaced by its content"
        return self.config

    @property
    def model_type(self) -> str:
        """The name of the family in transformers."""
        return str(self._content.get("model_type"))

    @property
    def vocab_size(self) -> int:
        """Number of rows of the embedding."""
        return int(self.hf_config().vocab_size)

    @property
    def description(self) -> str:
        """The kind and sizes of the model, for readers."""
        config = self.hf_config()
        return (
            f"{self.model_type}: {config.num_hidden_layers} blocks of width {config.hidden_size}, trained on "
            f"{self.max_seq_len:,} tokens at a time, a vocabulary of {config.vocab_size:,}"
        )

    def hf_config(self) -> Any:
        """Return the configuration of transformers."""
        return make_config(self._content)

    # ------------------------------------------------------------------ the model

    def build(self) -> nn.Module:
        """Return a newly initialised model."""
        from transformers import AutoModelForCausalLM

        make: Any = AutoModelForCausalLM.from_config
        chosen = {} if self.attention is None else {"attn_implementation": self.attention}
        with config_errors():
            model: nn.Module = make(self.hf_config(), dtype=torch.float32, trust_remote_code=False, **chosen)
        return model

    def logits(
        self, model: Any, tokens: Tensor, cache: Cache | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """Score every next token.

        Args:
            model: What `build` returned.
            tokens: Token ids, int [batch, seq]; batch may be 0, as Poisson sampling draws it.
            cache: The cache of earlier tokens, to which these are added; None if these tokens are the whole text.
            position_ids: Without a cache: positions that restart at 0 in each conversation of a row, [batch, seq].

        Returns:
            Logits, [batch, seq, vocab_size].
        """
        kind: Any = type(model)
        arguments = _arguments(kind)
        if cache is not None:
            kept = {"cache" if "cache" in arguments else "past_key_values": cache.content}
            scores: Tensor = model(input_ids=tokens, use_cache=True, **kept).logits
            return scores
        is_empty = len(tokens) == 0  # most models of transformers fail on an empty batch
        batch = tokens.new_zeros(1, tokens.shape[1]) if is_empty else tokens
        # one row of positions for each sample: from a shared row, Opacus would compute one gradient for all
        positions = position_ids
        if positions is None or is_empty:
            positions = torch.arange(batch.shape[1], device=batch.device).expand(len(batch), -1)
        more = {"position_ids": positions} if "position_ids" in arguments else {}
        scores = model(input_ids=batch, use_cache=False, **more).logits
        return scores[: len(tokens)]

    def new_cache(self) -> Cache:
        """Return an empty cache for generation."""
        from transformers import DynamicCache

        return Cache(DynamicCache(config=self.hf_config()))

    def embeddings(self, model: Any) -> list[str]:
        """Return the names of the parameters with one row per token: the embedding, and the head if it is not tied."""
        rows = [model.get_input_embeddings(), model.get_output_embeddings()]
        tensors = {id(layer.weight) for layer in rows if layer is not None}
        return [name for name, parameter in model.named_parameters() if id(parameter) in tensors]

    def why_no_example_gradients(self, has_adapters: bool = False) -> str:
        """Return why the model cannot be trained with `example_privacy`, and what can; empty if it can.

        Args:
            has_adapters: Whether only adapters are trained.
        """
        verified = _EXAMPLE_GRADIENTS_OF_ADAPTERS if has_adapters else _EXAMPLE_GRADIENTS
        if self.model_type in verified:
            return ""
        choices = [f"choose one of {join_names(verified, 12)}"]
        if self.model_type in _EXAMPLE_GRADIENTS_OF_ADAPTERS:
            choices.append("train adapters with model.lora, whose gradients are verified for this family")
        return (
            f"the gradients of single examples are not verified for {self.model_type}{' with lora' * has_adapters}; "
            f"{', '.join(choices)}, or protect the updates of the node with privacy"
        )

    def why_no_conversations(self) -> str:
        """Return why the model cannot be trained on several conversations in a row; empty if it can."""
        if self.model_type in _SEPARATING:
            return ""
        return (
            f"it is not verified that {self.model_type} keeps the conversations of a row apart; it is for "
            f"{join_names(_SEPARATING, 20)}"
        )

    # ------------------------------------------------------------------ folders and checkpoints

    def differences(self, saved: Mapping[str, Any]) -> list[str]:
        """Return how a saved description of a model differs, one line each; `max_seq_len` may differ.

        Args:
            saved: The `hyper_parameters` of a checkpoint.
        """
        there = (saved.get("transformer") or {}).get("config")
        if there is None:
            return [f"model_type is mpt in the saved model, but {self.model_type} in this one"]
        return self._differences(there, "in the saved model")

    def _differences(self, there: Mapping[str, Any], where: str) -> list[str]:
        other = shaping_values(Transformer(config=complete(there), max_seq_len=1).hf_config())
        own = shaping_values(self.hf_config())
        return [
            f"{name} is {other.get(name)} {where}, but {own.get(name)} in this one"
            for name in dict.fromkeys((*own, *other))
            if own.get(name) != other.get(name)
        ]

    def check_folder(self, folder: Path) -> None:
        """Check whether the model of a folder is this one, see `read_folder`."""
        if lines := self._differences(read_json(folder / CONFIG), f"in {folder}"):
            raise ValueError("\n".join(lines))

    def read_folder(self, folder: Path) -> dict[str, Tensor]:
        """Read the weights of a folder by the names of the model's parameters, float32.

        Raises:
            ValueError: If the folder has no safetensors, an adapter, or weights of another model.
        """
        self.check_folder(folder)
        model = read_model(folder, self.hf_config())
        return {f"{PREFIX}{name}": parameter.detach() for name, parameter in model.named_parameters()}

    def write_folder(self, folder: Path, weights: Mapping[str, Tensor], eos_token_id: int | None = None) -> None:
        """Write config and weights, so that transformers can open the folder.

        Args:
            folder: An empty folder.
            weights: By the names of the model's parameters.
            eos_token_id: The token that ends a text, if it is known.
        """
        with torch.random.fork_rng(devices=[]):
            model: Any = self.build()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[f"{PREFIX}{name}"])
        model.config.use_cache = True
        if eos_token_id is not None:
            model.config.eos_token_id = model.generation_config.eos_token_id = eos_token_id
        model.save_pretrained(folder)


class Cache:
    """Keys and values of earlier tokens, so that generation does not compute them again.

    Args:
        content: The cache of transformers.
    """

    def __init__(self, content: Any) -> None:
        self.content = content

    @property
    def num_tokens(self) -> int:
        """Number of cached tokens."""
        return int(self.content.get_seq_length())


@functools.cache
def _arguments(model: Any) -> frozenset[str]:
    """Return the names of the arguments of a model's forward. That of the cache depends on transformers' version."""
    return frozenset(inspect.signature(model.forward).parameters)
