"""The cost of a leaf in a world of many leaves: memory, and CPU seconds for each of its fits.

    python tests/benchmarks/many_leaves.py [--leaves 10 1000] [--rounds 2] [--steps 2] [--folder DIR] [--in-memory]
                                           [--cache-gb 0.25] [--keep-moments] [--checkpoint]

Every world has four levels and nodes of 3M parameters each, which read random tokens: a few steps of 2 blocks of 64
tokens. The method is WorldLM's: the backbone averaged, keys and values attended to, residuals exchanged. Worlds run one
after the other, each in a process of its own; small ones for more rounds, until they made 100 fits. Printed are the
seconds of the process until the first round, those of all rounds per fit of a leaf, the most memory that the process
held, and what its pages took on disk in the end. Without --keep-moments the inner optimizers start anew at every fit,
which spares two thirds of the disk: 1,000 leaves take up to 30 GB, with their moments 60 GB.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from worldlm.callbacks import AttentionAggregation, Averaging, LastCheckpoint, ResidualExchange, Traffic
from worldlm.data import BlockBatchSampler
from worldlm.data.blocks import Blocks
from worldlm.data.packed import PackedCorpus
from worldlm.models import Architecture, LanguageModule, OptimizerSettings, Split
from worldlm.storage.host_memory import keep_freed_memory
from worldlm.storage.paged_store import Paging
from worldlm.topology import Node, Settings, Topology
from worldlm.trainer import WorldTrainer

SEQ, VOCAB, BATCH = 64, 4352, 2
LEAST_FITS = 100


class RandomText(LightningDataModule):
    """Gives every leaf its own order of the same random tokens."""

    def train_dataloader(self) -> dict[str, DataLoader[Tensor]]:
        """Return a loader for every leaf."""
        tokens = np.random.default_rng(0).integers(0, VOCAB, 1000 * SEQ + 1, np.uint16)
        blocks = Blocks(PackedCorpus(Path("random"), tokens, len(tokens), 1), SEQ)  # type: ignore[arg-type]
        nodes: list[Node] = self.trainer.topology.data_nodes  # type: ignore[union-attr]
        return {node.name: self._loader(blocks, node.name) for node in nodes}

    @staticmethod
    def _loader(blocks: Blocks, name: str) -> DataLoader[Tensor]:
        sampler = BlockBatchSampler(len(blocks), BATCH, 0, name)
        return DataLoader(blocks, batch_sampler=sampler, collate_fn=_identity, generator=torch.Generator())


def _identity(batch: Any) -> Any:
    return batch


class Clock(Callback):
    """Notes the seconds of this process at the start and the end of all rounds."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0

    def on_train_epoch_start(self, *args: Any) -> None:
        """Note when the first round begins."""
        self.began = self.began or time.process_time()

    def on_train_epoch_end(self, *args: Any) -> None:
        """Note when the last round has ended."""
        self.ended = time.process_time()


def world(leaves: int, settings: Settings) -> Topology:
    """Return four levels with so many leaves: ten federations of ten of ten, or the last ten of them alone."""
    names = iter(range(10**9))

    def node(level: int, width: int) -> Node:
        name = f"n{next(names)}"
        if level == 3:
            return Node(name=name, corpus="text", settings=settings)
        below = width if level == 2 else max(1, round(width ** (1 / (3 - level))))
        children = tuple(node(level + 1, max(1, width // below)) for _ in range(below))
        return Node(name=name, children=children, settings=settings)

    if leaves <= 10:
        inner = Node(name="inner", settings=settings, children=tuple(node(3, 1) for _ in range(leaves)))
        outer = Node(name="outer", settings=settings, children=(inner,))
        return Topology(name="many", root=Node(name="root", settings=settings, children=(outer,)))
    return Topology(name="many", root=node(0, leaves))


def most_memory() -> float:
    """Return the most memory that this process held so far, in MB; on Linux."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def run(options: argparse.Namespace, leaves: int, folder: Path) -> None:
    """Train one world, and print what it took."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as `worldlm fit` does
    moments = "keep" if options.keep_moments else "reset"
    topology = world(leaves, Settings(num_local_steps=options.steps, batch_size=BATCH, optimizer_state=moments))
    number = sum(node.is_leaf for node in topology.nodes.values())
    rounds = max(options.rounds, -(-LEAST_FITS // number))
    architecture = Architecture(num_blocks=4, d_model=208, num_heads=8, max_seq_len=SEQ, vocab_size=VOCAB)
    split = Split(keys=(r"blocks\.[23]\.(norm_1|attn)\.",), values=(r"blocks\.[23]\.", r"norm_f\."))
    module = LanguageModule(architecture, split, OptimizerSettings(lr=1e-3, warmup_steps=1))
    clock = Clock()
    method = [Averaging(), AttentionAggregation(), ResidualExchange(num_residuals=1), Traffic(), clock]
    trainer = WorldTrainer(
        topology=topology, max_epochs=rounds, seed=0, accelerator="cpu", logger=False, default_root_dir=folder,
        enable_checkpointing=options.checkpoint, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[*method, *([LastCheckpoint()] if options.checkpoint else [])],
        paging=None if options.in_memory else Paging(cache_gb=options.cache_gb),
    )  # fmt: skip
    trainer.fit(module, datamodule=RandomText())
    size = sum(parameter.numel() for parameter in module.parameters()) / 1e6
    disk = sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 1e9
    fits = number * rounds
    print(
        f"{number:5} leaves of {size:.2f}M, {len(topology.nodes)} nodes, {rounds} rounds: start {clock.began:.1f} s, "
        f"{1000 * (clock.ended - clock.began) / fits:.1f} ms a fit, {most_memory():.0f} MB, {disk:.1f} GB on disk",
        flush=True,
    )


def main() -> None:
    """Run every world in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leaves", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--cache-gb", type=float, default=0.25)
    parser.add_argument("--in-memory", action="store_true")
    parser.add_argument("--keep-moments", action="store_true")
    parser.add_argument("--checkpoint", action="store_true", help="keep last.ckpt, written after every round")
    options = parser.parse_args()
    if len(options.leaves) > 1:
        rest = [argument for argument in sys.argv[1:] if argument not in ("--leaves", *map(str, options.leaves))]
        for leaves in options.leaves:
            subprocess.run([sys.executable, __file__, *rest, "--leaves", str(leaves)], check=True)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run(options, options.leaves[0], Path(folder))


if __name__ == "__main__":
    main()
