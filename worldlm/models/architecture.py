"""The description of WorldLM's own model: the sizes of an MPT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from worldlm.models.hugging_face import check_config, read_folder, write_folder
from worldlm.models.mpt import MPT, Cache, Sizes


@dataclass(frozen=True, kw_only=True)  # without slots, since jsonargparse reads `vars` of a default
class Architecture(Sizes):
    """WorldLM's own model: an MPT of these sizes."""

    @property
    def model_type(self) -> str:
        """The name of the family in transformers."""
        return "mpt"

    @property
    def description(self) -> str:
        """The kind and sizes of the model, for readers."""
        return (
            f"MPT: {self.num_blocks} blocks of width {self.d_model}, {self.num_heads} heads, {self.max_seq_len:,} "
            f"tokens of context, a vocabulary of {self.vocab_size:,}"
        )

    def build(self) -> nn.Module:
        """Return a newly initialised model."""
        return MPT(self)

    def logits(self, model: nn.Module, tokens: Tensor, cache: Any = None, position_ids: Tensor | None = None) -> Tensor:
        """Score every next token, see `MPT.forward`."""
        scores: Tensor = model(tokens, cache, position_ids)
        return scores

    def new_cache(self) -> Cache:
        """Return an empty cache for generation."""
        return Cache()

    def embeddings(self, model: nn.Module) -> list[str]:
        """Return the names of the parameters with one row per token."""
        return ["transformer.wte.weight"]

    def differences(self, saved: Mapping[str, Any]) -> list[str]:
        """Return how a saved description of a model differs, one line each; `max_seq_len` may differ.

        Args:
            saved: The `hyper_parameters` of a checkpoint.
        """
        sizes = saved.get("architecture") or {}
        found = [(name, sizes.get(name), value) for name, value in asdict(self).items() if name != "max_seq_len"]
        return [
            f"{name} is {before} in the saved model, but {now} in this one"
            for name, before, now in found
            if before != now
        ]

    def check_folder(self, folder: Path) -> None:
        """Check whether the model of a Hugging Face folder is this one, see `read_folder`."""
        check_config(folder, self)

    def read_folder(self, folder: Path) -> dict[str, Tensor]:
        """Read the weights of a Hugging Face folder by the names of the model's parameters, float32.

        Raises:
            ValueError: If the folder is no model of transformers, or another one, with one line per difference.
        """
        return read_folder(folder, self)

    def write_folder(self, folder: Path, weights: Mapping[str, Tensor], eos_token_id: int | None = None) -> None:
        """Write config and weights, so that transformers can open the folder.

        Args:
            folder: An empty folder.
            weights: By the names of the model's parameters.
            eos_token_id: The token that ends a text, if it is known.

        Raises:
            ValueError: If transformers' MPT cannot compute what the model does.
        """
        write_folder(folder, self, weights, eos_token_id)
