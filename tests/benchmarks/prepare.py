"""Preparing text against bare `tokenizers`: speed on the same cores, and peak memory as the text grows.

    python tests/benchmarks/prepare.py [--files 'PATTERN' ...] [--tokenizer NAME] [--megabytes 20] [--pairs 5]

Both sides get the same documents: bare `tokenizers` as lists in memory, in batches, on all cores; `prepare` as the file
they come from, which it also reads, splits, checks and writes down. Without --files, documents of the
standard library, over and over, and a BPE trained on them.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer as Backend

from worldlm.data import Corpus, Request, StandardLibrary, TextFiles, Tokenizer, TrainedBPE, load_tokenizer, prepare

BATCH = 512


def write(corpora: list[Corpus], file: Path, num_bytes: int) -> list[str]:
    """Write documents to a file of JSON lines until it is long enough, and return them."""
    documents = [text for corpus in corpora for text in corpus.documents("train")]
    texts: list[str] = []
    size = 0
    with file.open("w") as stream:
        for text in cycle(documents):
            stream.write(json.dumps({"text": text}) + "\n")
            texts.append(text)
            size += len(text.encode())
            if size >= num_bytes:
                return texts
    raise AssertionError


def bare(texts: list[str], backend: Backend) -> float:
    """Return the tokens per second of `tokenizers` alone."""
    started = time.perf_counter()
    count = 0
    for begin in range(0, len(texts), BATCH):
        count += sum(map(len, backend.encode_batch_fast(texts[begin : begin + BATCH], add_special_tokens=False)))
    return count / (time.perf_counter() - started)


def ours(file: Path, tokenizer: Tokenizer, folder: Path) -> float:
    """Return the tokens per second of a whole preparation."""
    started = time.perf_counter()
    with TemporaryDirectory(dir=folder) as cache:
        corpus = TextFiles(train=str(file), validation_fraction=0.1)
        (packed,) = prepare([Request("text", corpus, "text")], tokenizer, cache).values()
        count = sum(split.num_tokens for split in packed.values())
        return count / (time.perf_counter() - started)


def peak(file: Path, tokenizer: Path, folder: Path) -> float:
    """Return the peak memory of a preparation in a process of its own, in MB."""
    command = [sys.executable, __file__, "--peak", str(file), str(tokenizer), str(folder)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Run both in turn and print."""
    if sys.argv[1:2] == ["--peak"]:
        ours(Path(sys.argv[2]), load_tokenizer(sys.argv[3]), Path(sys.argv[4]))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", nargs="+")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--megabytes", type=float, default=20.0)
    parser.add_argument("--pairs", type=int, default=5)
    given = parser.parse_args()
    library = [StandardLibrary(area=area) for area in ("topics", "docstrings", "network", "tools")]
    corpora = [TextFiles(train=given.files)] if given.files else library
    with TemporaryDirectory() as name:
        folder = Path(name)
        if given.tokenizer is None:
            TrainedBPE().load({area.area: area for area in library}, folder)
            (given.tokenizer,) = folder.glob("tokenizers/*.json")
        files = [folder / "small.jsonl", folder / "large.jsonl"]
        texts = write(corpora, files[0], int(given.megabytes * 1e6))
        write(corpora, files[1], int(given.megabytes * 1e7))
        backend, tokenizer = Backend.from_file(str(given.tokenizer)), load_tokenizer(str(given.tokenizer))
        bare(texts[:BATCH], backend)
        rates = []
        for _ in range(given.pairs):
            rates.append((bare(texts, backend), ours(files[0], tokenizer, folder)))
            print(f"bare {rates[-1][0] / 1e6:.3f}, prepare {rates[-1][1] / 1e6:.3f} M tokens/s", flush=True)
        medians = [statistics.median(side) for side in zip(*rates, strict=True)]
        print(f"medians: bare {medians[0] / 1e6:.3f}, prepare {medians[1] / 1e6:.3f}: {medians[1] / medians[0]:.2f}")
        for file in files:
            megabytes = file.stat().st_size / 1e6
            print(f"{megabytes:.0f} MB of JSON lines: peak {peak(file, given.tokenizer, folder):.0f} MB")


if __name__ == "__main__":
    main()
