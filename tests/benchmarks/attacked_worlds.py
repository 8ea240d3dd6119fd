"""The documents and the small worlds that `membership_inference.py` attacks."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from worldlm.callbacks import Averaging, ExamplePrivacy, UpdatePrivacy
from worldlm.data.blocks import Blocks
from worldlm.data.packed import DOCUMENT, PackedCorpus
from worldlm.data.poisson_samplers import make_sampler
from worldlm.data.unit_blocks import PADDING, UnitBlocks
from worldlm.federation.messages import Download, Upload, joined
from worldlm.federation.parameters import Tensors
from worldlm.federation.privacy import PrivacyLedger
from worldlm.models import Architecture, LanguageModule, OptimizerSettings, Split
from worldlm.rounds import Context
from worldlm.topology import parse_topology
from worldlm.trainer import FederationCallback, WorldTrainer

SEQ, END, BATCH = 32, 256, 16
KINDS = {"text": 96, "canary": 32, "repeated canary": 32}


@dataclass(frozen=True)
class Node:
    """A kind of node."""

    title: str
    settings: str = ""
    """Its privacy, in YAML."""
    unit: str = "block"
    covered: tuple[str, ...] = ()
    """The kinds of documents that are at most one unit."""


@dataclass
class Documents:
    """All documents by number, and their kinds."""

    tokens: list[list[int]]
    """For training."""
    kinds: NDArray[np.str_]
    scored: list[list[int]] = field(default_factory=list)
    """What the attacker measures the loss of."""

    @classmethod
    def make(cls, text: bytes, seed: int = 0) -> Documents:
        """Cut text into documents, and draw canaries."""
        draw, length = random.Random(seed), 4 * (SEQ + 1) - 1
        begins = draw.sample(range(len(text) // length), KINDS["text"])
        tokens = [list(text[begin * length : (begin + 1) * length]) for begin in begins]
        scored = list(tokens)
        for kind, blocks in (("canary", 1), ("repeated canary", 8)):
            for _ in range(KINDS[kind]):
                canary = [draw.randrange(256) for _ in range(SEQ)]
                tokens.append((canary * 9)[: blocks * (SEQ + 1) - 1])
                scored.append(canary)
        return cls(tokens, np.repeat(list(KINDS), list(KINDS.values())), scored)

    def halves(self, number: int, seed: int = 1) -> NDArray[np.bool_]:
        """Return for each of `number` models, an even number, which documents it is trained on: half of each kind.

        Models come in pairs whose documents complement each other.
        """
        rng, rows = np.random.default_rng(seed), []
        for _ in range(number // 2):
            row = np.zeros(len(self.tokens), bool)
            for kind in KINDS:
                of_kind = np.flatnonzero(self.kinds == kind)
                row[rng.choice(of_kind, len(of_kind) // 2, replace=False)] = True
            rows += [row, ~row]
        return np.stack(rows)

    def corpus(self, which: Sequence[int]) -> PackedCorpus:
        """Pack some documents, in memory."""
        lengths = [len(self.tokens[i]) + 1 for i in which]
        packed = [token for i in which for token in (*self.tokens[i], END)]
        table = np.zeros(len(lengths), DOCUMENT)
        table["end"] = np.cumsum(lengths)
        return PackedCorpus(Path("memory"), np.array(packed, np.uint16), len(packed), len(lengths), None, table)

    @torch.no_grad()
    def losses(self, module: LanguageModule) -> NDArray[np.float64]:
        """Return the loss of each document, in nats per token."""
        rows, owners = [], []
        for number, tokens in enumerate(self.scored):
            whole = [END, *tokens]
            for begin in range(0, len(tokens), SEQ):
                row = whole[begin : begin + SEQ + 1]
                rows.append(row + [PADDING] * (SEQ + 1 - len(row)))
                owners.append(number)
        batch = torch.tensor(rows)
        logits = module(batch[:, :-1].clamp(min=0)).transpose(1, 2)
        each = torch.nn.functional.cross_entropy(logits, batch[:, 1:], ignore_index=PADDING, reduction="none").sum(1)
        sums = np.bincount(owners, each.double().numpy())
        means: NDArray[np.float64] = sums / [len(tokens) for tokens in self.scored]
        return means


class OneText(LightningDataModule):
    """Gives the leaf its text."""

    def __init__(self, corpus: PackedCorpus, unit: str) -> None:
        super().__init__()
        self.corpus, self.unit = corpus, unit

    def train_dataloader(self) -> dict[str, DataLoader[Tensor]]:
        """Return the loader of the leaf."""
        trainer: Any = self.trainer
        (node,) = trainer.topology.data_nodes
        private = node.settings.example_privacy is not None
        blocks: Any = Blocks(self.corpus, SEQ, disjoint=True)
        starts = None
        if self.unit == "document":
            blocks = UnitBlocks([self.corpus], SEQ, "document")
            starts = blocks.unit_starts
        key = trainer.noise_key if private else None
        unit: Any = self.unit
        sampler = make_sampler([len(blocks)], BATCH, trainer.seed, node.name, key=key, unit=unit, unit_starts=starts)
        loader = DataLoader(blocks, batch_sampler=sampler, collate_fn=_identity, generator=torch.Generator())
        return {node.name: loader}


def _identity(batch: Any) -> Any:
    return batch


class Sent(FederationCallback):
    """Records what a node would send without privacy, and what its parent already has."""

    def __init__(self) -> None:
        self.model: Tensors = {}
        self.start: Tensors = {}

    def on_sanitise(self, context: Context, upload: Upload, download: Download) -> Upload:
        """Record, and change nothing."""
        self.model = {name: tensor.clone() for name, tensor in joined(upload.parts).items()}
        self.start = {name: tensor.clone() for name, tensor in joined(download.parts).items()}
        return upload


def train(
    corpus: PackedCorpus, node: Node, steps: int, folder: Path, more: Sequence[Callback] = ()
) -> tuple[LanguageModule, PrivacyLedger]:
    """Train the leaf of a world for one round, and return its model and the ledger of its examples."""
    lines = f"name: attacked\nsettings: {{num_local_steps: {steps}, batch_size: {BATCH}{node.settings}}}\n"
    topology = parse_topology(f"{lines}root: {{name: world, children: [{{name: leaf, corpus: text}}]}}\n", "attacked")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        architecture = Architecture(num_blocks=1, d_model=32, num_heads=2, max_seq_len=SEQ, vocab_size=257)
        split = Split(keys=(r"blocks\.0\.(norm_1|attn)\.",), values=(r"blocks\.0\.", r"norm_f\."))
        module = LanguageModule(architecture, split, OptimizerSettings(lr=1e-2, warmup_steps=5))
    of_examples = ExamplePrivacy()
    trainer = WorldTrainer(
        topology=topology,
        callbacks=[*more, Averaging(parts=["backbone", "keys", "values"]), of_examples, UpdatePrivacy()],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=Path(tempfile.mkdtemp(dir=folder)),
        seed=7,
        max_epochs=1,
    )
    trainer.fit(module, datamodule=OneText(corpus, node.unit))
    state = trainer.world.states["leaf"]
    module.load_weights(state.parameters)
    return module, of_examples.ledger(state)
