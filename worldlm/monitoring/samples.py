"""Text samples of every node's model in TensorBoard."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule

from worldlm.models import NotFiniteError, generate
from worldlm.monitoring.pictures import is_due
from worldlm.rounds import Context
from worldlm.trainer import FederationCallback, WorldTrainer

MAX_NODES = 24
"""Largest number of nodes with samples, from the root down; a sample takes as long as a few local steps."""


class Samples(FederationCallback):
    """Generates a continuation of the same prompt with every node's model, every few rounds.

    A leaf generates after it has trained, a federation after it has merged. TensorBoard shows the samples under Text,
    by round. Sampling does not change the rest of the run.

    The samples come from the nodes' own models, before any noise is added. A private node's sample is not covered by
    its privacy guarantee, and neither is anything else in the run folder.

    Args:
        prompt: Text to continue. It should be public, since every node gets it.
        num_new_tokens: Tokens to generate, at least 1.
        every_n_rounds: Rounds between two samples, at least 1. None uses the default of `Pictures`.
        temperature: As in `worldlm.models.generate`.
        top_k: As in `worldlm.models.generate`.

    Raises:
        ValueError: If the prompt is empty, or `num_new_tokens` or `every_n_rounds` is below 1.
    """

    def __init__(
        self,
        prompt: str = "The",
        num_new_tokens: int = 64,
        every_n_rounds: int | None = None,
        temperature: float = 0.8,
        top_k: int | None = 40,
    ) -> None:
        if not prompt or num_new_tokens < 1 or (every_n_rounds is not None and every_n_rounds < 1):
            raise ValueError(
                f"Samples needs a prompt, got {prompt!r}, and num_new_tokens and every_n_rounds of at least 1, got "
                f"{num_new_tokens} and {every_n_rounds}"
            )
        self.prompt = prompt
        self.num_new_tokens = num_new_tokens
        self.every_n_rounds = every_n_rounds
        self.temperature = temperature
        self.top_k = top_k
        self._trainer: WorldTrainer | None = None

    def setup(self, trainer: WorldTrainer, pl_module: LightningModule, stage: str) -> None:  # type: ignore[override]
        self._trainer = trainer

    def on_merged(self, context: Context) -> None:
        if context.node.children or not context.node.fits:
            self._write(context)

    def on_local_fit_end(self, context: Context) -> None:
        if context.node.is_leaf:
            self._write(context)

    def _write(self, context: Context) -> None:
        trainer = self._trainer
        assert trainer is not None, "setup runs before the first round"
        if context.node.name not in islice(trainer.topology.nodes, MAX_NODES):
            return
        tokenizer = getattr(getattr(trainer, "datamodule", None), "tokenizer", None)
        if tokenizer is None or not trainer.loggers or not is_due(trainer, self.every_n_rounds):
            return
        trainer.fit_loop.slot.load_weights(context.node.name, context.state)
        module: Any = trainer.lightning_module
        try:
            with trainer.precision_plugin.forward_context():
                tokens = generate(
                    module,
                    torch.tensor(list(tokenizer.encode_batch([self.prompt])[0]), dtype=torch.int64),
                    num_new_tokens=self.num_new_tokens,
                    temperature=self.temperature,
                    top_k=self.top_k,
                    generator=torch.Generator().manual_seed(context.seed("samples")),
                )
            text = _verbatim(tokenizer.decode(tokens.tolist()))
        except NotFiniteError as error:
            text = f"no text: {error}"
        context.log_text(f"samples/{context.node.name}", text)


def _verbatim(text: str) -> str:
    """Indent a text so that Markdown shows it verbatim."""
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])
