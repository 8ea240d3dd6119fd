"""What every node's model writes, on the run's TensorBoard."""

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
"""Nodes that write, the first ones from the root down: a text takes as long as some local steps."""


class Samples(FederationCallback):
    """Lets every node continue the same prompt every few rounds: a leaf once it trained, a federation once it merged.

    The texts stand on the TensorBoard under Text, in the order of rounds. They are those of the nodes' own models,
    which never left them: what a private node's model writes is not covered by its privacy, as is nothing else that the
    run's own folder holds. The draws change nothing else of a run.

    Args:
        prompt: What is continued. It should be public: every node reads it.
        num_new_tokens: Tokens that a node adds, at least 1.
        every_n_rounds: Rounds between two texts; by default as for `Pictures`.
        temperature: As in `worldlm.models.generate`.
        top_k: As in `worldlm.models.generate`.

    Raises:
        ValueError: If the prompt is empty, or num_new_tokens or every_n_rounds is below 1.
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
                f"Samples need a prompt, got {prompt!r}, and num_new_tokens and every_n_rounds of at least 1, got "
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
        assert trainer is not None, "set up before the first round"
        if context.node.name not in islice(trainer.topology.nodes, MAX_NODES):
            return
        tokenizer = getattr(getattr(trainer, "datamodule", None), "tokenizer", None)
        if tokenizer is None or not trainer.loggers or not is_due(trainer, self.every_n_rounds):
            return
        trainer.fit_loop.slot.load_weights(context.node.name, context.state)
        module: Any = trainer.lightning_module
        try:
            with trainer.precision_plugin.forward_context():
                text = generate(
                    module,
                    torch.tensor(list(tokenizer.encode_batch([self.prompt])[0]), dtype=torch.int64),
                    num_new_tokens=self.num_new_tokens,
                    temperature=self.temperature,
                    top_k=self.top_k,
                    generator=torch.Generator().manual_seed(context.seed("samples")),
                )
            told = _verbatim(tokenizer.decode(text.tolist()))
        except NotFiniteError as error:
            told = f"no text: {error}"
        context.log_text(f"samples/{context.node.name}", told)


def _verbatim(text: str) -> str:
    """Indent a text, so that Markdown shows it as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])
