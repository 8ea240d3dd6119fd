"""Count the forged checkpoints that a command accepts, or rejects in one line: `python forged_checkpoints.py NUMBER`.

Each is a complete checkpoint of a run of two rounds, saved at its end or within a round, in which one value at any
depth is missing or changed. `fit` resumes from it; with `--command`, another command reads it. Any exception counts as
a failure, and so does more than one line for one mistake.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import os
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from toy_world import BEGINNING, write_toy_world

from worldlm.checkpoint.lightning_io import AtomicCheckpointIO
from worldlm.cli import main as worldlm

TOPOLOGY = """\
name: shore
settings: {num_local_steps: 2, privacy: {clip_norm: 1.0, noise_multiplier: 0.5, max_epsilon: 1000.0}}
root:
  name: world
  children:
    - {name: land, children: [{name: hills, corpus: hills}, {name: woods, corpus: hills}]}
    - {name: coast, children: [{name: sea, corpus: sea}, {name: bay, corpus: sea}]}
"""

RECIPE = (
    "seed_everything: 7\n"
    + BEGINNING
    + """\
trainer:
  accelerator: cpu
  max_epochs: 2
  callbacks:
    - {class_path: worldlm.callbacks.Averaging, init_args: {optimizer: SGD, arguments: {lr: 0.7, momentum: 0.9}}}
    - {class_path: worldlm.callbacks.AttentionAggregation}
    - {class_path: worldlm.callbacks.ResidualExchange}
    - {class_path: worldlm.callbacks.TokenRows}
    - {class_path: worldlm.callbacks.UpdatePrivacy}
    - {class_path: worldlm.callbacks.Compression}
    - {class_path: worldlm.callbacks.LastCheckpoint, init_args: {every_n_minutes: 1.0e-6}}
"""
)
FORGED = Path("runs/whole/version_0/checkpoints/last.ckpt")
COMMANDS = {
    "fit": f"fit --recipe tiny.yaml --name on --ckpt_path {FORGED} --trainer.max_epochs 3",
    "validate": f"validate --recipe tiny.yaml --ckpt_path {FORGED}",
    "generate": "generate runs/whole --max_new_tokens 3 wave",
    "evaluate": "evaluate runs/whole --limit 1",
    "export": "export runs/whole --node coast --out home --force",
}
OTHERS: tuple[Any, ...] = (None, True, -1, 3, 2**70, 1.5, float("nan"), "x", [], [1], ["x"], {}, {"x": 1})


def places(within: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to every value of nested containers, at any depth."""
    items = within.items() if isinstance(within, dict) else enumerate(within) if isinstance(within, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def forge(rng: random.Random, checkpoint: dict[str, Any]) -> str:
    """Change or remove one value, in place, and describe the change.

    The depth is drawn first. Otherwise most drawn values would be tensors of a node.
    """
    paths = list(places(checkpoint))
    depth = rng.choice(sorted({len(path) for path in paths}))
    *above, last = rng.choice([path for path in paths if len(path) == depth])
    within = checkpoint
    for key in above:
        within = within[key]
    if isinstance(within, dict) and rng.random() < 0.2:
        del within[last]
        return f"{[*above, last]} is gone"
    before = within[last]
    choice = rng.choice([*OTHERS, torch.zeros(3), torch.zeros(()), "another shape"])
    if isinstance(choice, str) and choice == "another shape":
        choice = torch.zeros(*before.shape, 2) if isinstance(before, torch.Tensor) else torch.zeros(2, 2)
    within[last] = choice
    return f"{[*above, last]} is {str(choice)[:40]!r}, was {str(before)[:40]!r}"


def whole_run() -> list[Path]:
    """Run `fit`, and return copies of all checkpoints that it wrote, one after every step."""
    copies: list[Path] = []
    write = AtomicCheckpointIO.save_checkpoint

    def write_and_copy(self: AtomicCheckpointIO, checkpoint: Any, path: Any, **more: Any) -> None:
        write(self, checkpoint, path, **more)
        copies.append(Path(f"{len(copies)}.ckpt"))
        shutil.copy(path, copies[-1])

    AtomicCheckpointIO.save_checkpoint = write_and_copy  # type: ignore[method-assign]
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        assert worldlm(["fit", "--recipe", "tiny.yaml", "--name", "whole"]) == 0
    AtomicCheckpointIO.save_checkpoint = write  # type: ignore[method-assign]
    return copies


def read(command: str) -> str:
    """Run a command on the forged checkpoint, and return how it ended: "rejected", "accepted" or "failed: ..."."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
            status = worldlm(COMMANDS[command].split())
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        frame = [frame for frame in traceback.extract_tb(error.__traceback__) if "/worldlm/" in frame.filename][-1]
        return f"failed: {type(error).__name__} in {frame.name}: {str(error)[:150]}"
    lines = [line for line in stderr.getvalue().splitlines() if line.startswith("worldlm: ")]
    if status and len(lines) != 1:
        return f"failed: {len(lines)} lines with status {status}: {stderr.getvalue()[-300:]}"
    return "rejected" if status else "accepted"


def main() -> None:
    """Forge a number of checkpoints, and print how the command ended on them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("number", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", choices=COMMANDS, default="fit")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    ends = collections.Counter[str]()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        sys.argv = ["worldlm"]
        os.environ["OMP_NUM_THREADS"] = "1"
        write_toy_world(Path(), TOPOLOGY, RECIPE)
        checkpoints = whole_run()
        for number in range(options.number):
            rng = random.Random(f"{options.seed} {number}")
            checkpoint = torch.load(rng.choice(checkpoints), weights_only=True)
            done = forge(rng, checkpoint)
            torch.save(checkpoint, FORGED)
            end = read(options.command)
            ends[end.partition(":")[0]] += 1
            if end.startswith("failed"):
                print(f"{options.seed} {number}: {done}: {end}", flush=True)
    print(f"done. {options.number} forged checkpoints: {dict(ends)}")


if __name__ == "__main__":
    main()
