"""How fast packed text is read into batches: tokens a second through the loaders that `worldlm fit` reads.

    python tests/benchmarks/read_batches.py [--megabytes 200] [--batches 2000] [--repeats 3] [--threads 1]

Random tokens of 16 bits stand in for text; batches are 32 blocks of 1024 tokens. The file is in the page cache, as
after packing, and starting workers is left out. The loaders are read in turn, and medians are printed.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from worldlm.data.blocks import Blocks, MixedBlocks, join_blocks
from worldlm.data.packed import PackedCorpus
from worldlm.data.poisson_samplers import make_sampler

BATCH, SEQ = 32, 1024
SHARES = (0.4, 0.3, 0.2, 0.1)
"""Of the text that each part of the mixture holds."""
WEIGHTS = (0.1, 0.2, 0.3, 0.4)
"""Of the tokens that are drawn from each part."""


def packed(folder: Path, name: str, num_tokens: int) -> PackedCorpus:
    """Write random tokens and open them."""
    path = folder / f"{name}.bin"
    np.random.default_rng(0).integers(0, 50_000, num_tokens, np.uint16).tofile(path)
    return PackedCorpus(path, np.memmap(path, np.uint16, "r"), 4 * num_tokens, 1)


def loader(blocks: Blocks | MixedBlocks, weights: tuple[float, ...] | None, num_workers: int) -> DataLoader[Any]:
    """Open a node's batches as the data module does."""
    return DataLoader(
        blocks,
        batch_sampler=make_sampler(blocks.sizes, BATCH, seed=0, node="node", weights=weights),
        collate_fn=_identity,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),
    )


def visit(batches: DataLoader[Any], start: int, length: int) -> float:
    """Return tokens a second over one visit of a node."""
    sampler: Any = batches.batch_sampler
    sampler.start, sampler.length = start, length
    began, num_tokens = time.perf_counter(), 0
    for batch in batches:
        num_tokens += batch.shape[0] * (batch.shape[1] - 1)
    assert num_tokens == length * BATCH * SEQ
    return num_tokens / (time.perf_counter() - began)


def _identity(batch: Any) -> Any:
    return batch


def main() -> None:
    """Run all in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"megabytes": 200, "batches": 2000, "repeats": 3, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    num_tokens = given.megabytes * 1_000_000 // 2
    with tempfile.TemporaryDirectory() as folder:
        whole = Blocks(packed(Path(folder), "whole", num_tokens), SEQ)
        sizes = [int(share * num_tokens) for share in SHARES]
        mixed = join_blocks([Blocks(packed(Path(folder), f"part_{size}", size), SEQ) for size in sizes])
        loaders = {
            "uniform": loader(whole, None, 0),
            "mixture of 4": loader(mixed, WEIGHTS, 0),
            "uniform, 2 workers": loader(whole, None, 2),
            "mixture of 4, 2 workers": loader(mixed, WEIGHTS, 2),
        }
        speeds: dict[str, list[float]] = {name: [] for name in loaders}
        for batches in loaders.values():
            visit(batches, 0, 20)  # warms up, and starts the workers
        for repeat in range(given.repeats):
            for name, batches in loaders.items():
                speeds[name].append(visit(batches, 20 + repeat * given.batches, given.batches))
    print(f"{given.megabytes} MB of uint16, {given.batches} batches of {BATCH} x {SEQ}, median of {given.repeats}")
    for name, measured in speeds.items():
        print(f"{name:24} {statistics.median(measured) / 1e6:8.1f} M tokens/s")


if __name__ == "__main__":
    main()
