"""What a run came to, round by round, for programs to read: results.json in the run's folder."""

import hashlib
import json
import math
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule

from worldlm.federation.parameters import Tensors
from worldlm.federation.state import NodeState
from worldlm.files.atomic_write import write_text
from worldlm.monitoring.node_metrics import MOMENTS
from worldlm.monitoring.round_lines import RoundLines, find_rounds
from worldlm.monitoring.run_facts import code, data_facts, machine, tree_facts, versions
from worldlm.monitoring.summary import row
from worldlm.rounds import World
from worldlm.runs.results import FORMAT, RESULTS, RunRecord
from worldlm.topology import Node
from worldlm.topology.changes import Changes
from worldlm.trainer import FederationCallback, WorldTrainer

_SECONDS = "worldlm_seconds"


class Record(FederationCallback):
    """Writes `results.json` into the run's folder at the end of every round: strict JSON, whole or not there.

    It says what the run was (seed, tree, digest of the initial weights, text and batches of every data node,
    versions) and what became of it: for every round and node the figures of the closing table, the attention weights
    of the federations, and the residuals that found a home; how the topology changed between rounds; and, at the end of
    the run, digests of what all nodes' weights came to, by which a repetition is known to have matched. A perplexity
    of a round in which nothing was evaluated is missing; that of a node that took no part is its last one, for the node
    is as it was. Figures that are no finite number are null. A run that was interrupted and taken up again writes what
    one that never stopped would have, but for `seconds` and `last_start`: how, where and by what code it was started,
    the last time.

    A checkpoint holds a digest of the rounds, not the rounds, so that it does not grow with them: a run that goes on
    reads them from the results.json of the checkpoint's run, and drops those that came after it.
    """

    def __init__(self) -> None:
        self.changes: list[dict[str, Any]] = []
        """How the topology changed, and before which round, from 0."""
        self.initial_weights: str | None = None
        """Digest of the weights that all nodes started from; None where the run goes on from another's checkpoint."""
        self.final_weights: dict[str, str] | None = None
        """Digest of every node's weights at the end; None before."""
        self.command = shlex.join(sys.argv)
        """The command line of this start."""
        self.began = False
        """Whether there was anything to train since this start."""
        self._rounds = RoundLines()  # in process 0, which writes
        self._promised: tuple[int, str] | None = None  # by a checkpoint: how many rounds, and their digest
        self._routes = Counter[str]()  # up to the last finished round
        self._code: dict[str, str] = {}
        self._goes_on = False
        self._seconds = 0.0  # before this start
        self._started = time.monotonic()

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """What each finished round came to."""
        return self._rounds.parsed()

    @staticmethod
    def path(trainer: WorldTrainer) -> Path:
        """Return where the record of a run lies."""
        return trainer.folder / RESULTS

    def on_topology_change(self, world: World, changes: Changes, states: Mapping[str, NodeState]) -> None:
        self.changes.append({"round": world.changed_after, **changes.record()})

    def on_train_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        self._started, self.final_weights = time.monotonic(), None
        self.began = True
        if trainer.is_global_zero:
            self._code = {} if trainer.fast_dev_run else code()  # type: ignore[attr-defined]
            self._rounds = self._found(trainer)
        if self.initial_weights is None and not self._goes_on:
            self.initial_weights = weights_digest(trainer.world.states[trainer.topology.root.name].parameters)

    def on_train_epoch_end(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        self._add_round(trainer)
        finished = trainer.world.round + 1 == trainer.max_epochs
        self.final_weights = _all_digests(trainer) if finished else None
        self._write(trainer, finished=finished)

    def on_train_end(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        self.final_weights = self.final_weights or _all_digests(trainer)
        self._write(trainer, finished=True)  # also where something else than max_epochs ended it

    def so_far(self, trainer: WorldTrainer) -> RunRecord:
        """Return what the run came to, at the end of a round."""
        self._add_round(trainer)
        return RunRecord(method=trainer.topology.name, folder=trainer.folder, content=self.content(trainer))

    def content(self, trainer: WorldTrainer, finished: bool = False) -> dict[str, Any]:
        """Return what is written."""
        return {**self._head(trainer, finished), "rounds": self.rounds}

    # ------------------------------------------------------------------ what is written

    def _head(self, trainer: WorldTrainer, finished: bool) -> dict[str, Any]:
        wanted = trainer.max_epochs
        return {
            "format": FORMAT,
            "finished": finished,
            "rounds_done": len(self._rounds.lines),
            "rounds_wanted": wanted if wanted is not None and wanted >= 0 else None,
            "seed": trainer.seed,
            "changes": self.changes,
            "topology": {"name": trainer.topology.name, "root": tree_facts(trainer.topology.root, None)},
            "initial_weights": self.initial_weights,
            "final_weights": self.final_weights,
            "data_nodes": data_facts(trainer),
            "versions": versions(),
            "seconds": round(self._elapsed(), 3),
            "last_start": {"command": self.command, **machine(trainer), "code": self._code},
        }

    def _add_round(self, trainer: WorldTrainer) -> None:
        if not trainer.is_global_zero or self._rounds.last >= trainer.world.round:  # which somebody asked for before
            return
        before, self._routes = self._routes, trainer.method.routes(trainer.world)
        self._rounds.add(self._round(trainer, self._routes - before))

    @staticmethod
    def _round(trainer: WorldTrainer, routes: Counter[str]) -> dict[str, Any]:
        states = trainer.world.states
        return {
            "round": trainer.world.round,
            "nodes": {node.name: _figures(trainer, node) for node in trainer.topology.nodes.values()},
            "attention": {
                name: {one: _finite(weight) for one, weight in state.attention.items()}
                for name, state in states.items()
                if state.attention
            },
            "routes": dict(sorted(routes.items())),
        }

    def _write(self, trainer: WorldTrainer, *, finished: bool) -> None:
        if trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return  # a trial leaves nothing behind, and one process writes
        text = _pieces(self._head(trainer, finished), {"rounds": self._rounds.lines})
        write_text(self.path(trainer), text, to_disk=True)  # before a checkpoint relies on it

    # ------------------------------------------------------------------ checkpoints

    def _elapsed(self) -> float:
        return self._seconds + time.monotonic() - self._started

    def _found(self, trainer: WorldTrainer) -> RoundLines:
        """Return the rounds that were finished before this start."""
        if self._promised is None:
            kept = self._rounds.before(trainer.current_epoch)
            self._routes = self._routes if kept is self._rounds else kept.routes()  # this was another run's before
            return kept
        (number, digest), self._promised = self._promised, None
        checkpoint = Path(str(trainer.ckpt_path)).absolute()
        return find_rounds(number, digest, (checkpoint.parents[1], checkpoint.parent, trainer.folder))

    def state_dict(self) -> dict[str, Any]:
        state = {
            "initial_weights": self.initial_weights,
            "num_rounds": len(self._rounds.lines),
            "rounds_digest": self._rounds.digest,
            "routes": dict(self._routes),
        }
        return {**state, "changes": list(self.changes)} if self.changes else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.initial_weights = state_dict["initial_weights"]
        if "rounds" in state_dict:  # of a version whose checkpoints held them
            self._rounds = RoundLines(state_dict["rounds"])
            self._promised = None
            self._routes = self._rounds.routes()
        else:
            self._promised = state_dict["num_rounds"], state_dict["rounds_digest"]
            self._routes = Counter(state_dict["routes"])
        self.changes = list(state_dict.get("changes", []))

    def on_save_checkpoint(self, trainer: Any, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[_SECONDS] = self._elapsed()  # beside the state, which is the same however often a run stopped

    def on_load_checkpoint(self, trainer: Any, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._goes_on, self._seconds = True, float(checkpoint.get(_SECONDS, 0.0))


def weights_digest(weights: Tensors) -> str:
    """Return a digest of named tensors: of their names, types, shapes and bytes, in the order of their names."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _all_digests(trainer: WorldTrainer) -> dict[str, str] | None:
    """Return the digest of every node's weights; all processes call this at the same point."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    world, found = trainer.world, dict[str, str]()
    for part in world.transport.gather(
        {
            name: weights_digest(state.parameters)
            for name, state in world.states.items()
            if world.transport.is_local(name)
        }
    ):
        found |= part
    return {name: found[name] for name in world.states}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON, an item of a list to a line: at any moment `path` is the old file or the new one.

    Raises:
        ValueError: If the content holds NaN or infinity.
    """
    write_text(path, _pieces(content))


def _pieces(content: Mapping[str, Any], more: Mapping[str, Sequence[str]] | None = None) -> Iterator[str]:
    """Lay JSON out without an indent, with which it is written many times as slowly.

    Args:
        content: What is laid out.
        more: Lists that come last, whose items are JSON already.
    """
    start = "{\n"
    for name, value in content.items():
        yield f"{start} {json.dumps(name)}: "
        if isinstance(value, list):
            yield from _items([json.dumps(one, allow_nan=False) for one in value])
        else:
            yield json.dumps(value, allow_nan=False)
        start = ",\n"
    for name, lines in (more or {}).items():
        yield f"{start} {json.dumps(name)}: "
        yield from _items(lines)
    yield "\n}\n"


def _items(lines: Sequence[str]) -> Iterator[str]:
    yield "[\n  "
    for i, line in enumerate(lines):
        yield f",\n  {line}" if i else line
    yield "\n ]"


def _figures(trainer: WorldTrainer, node: Node) -> dict[str, Any]:
    found, figures = row(trainer, node), dict[str, Any]()
    for moment in MOMENTS:
        if moment in found and (moment == MOMENTS[0] or trainer.fit_loop.evaluates):
            figures[moment] = {
                "perplexity": _finite(found[moment]),
                "bits_per_byte": _finite(found.get(f"{moment} bits", math.nan)),
            }
    figures |= {name: _finite(found[name]) for name in ("tokens", "passes", "missed", "refused") if name in found}
    # the last bits of what an accountant integrates depend on the number of threads
    epsilons = {"epsilon": "epsilon", "example epsilon": "example_epsilon"}
    figures |= {ours: _finite(round(found[theirs], 9)) for theirs, ours in epsilons.items() if theirs in found}
    figures |= {f"bytes_{way}": round(found[f"MB {way}"] * 1e6) for way in ("down", "up") if f"MB {way}" in found}
    return figures


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
