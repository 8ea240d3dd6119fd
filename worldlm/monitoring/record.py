"""The machine-readable record of a run, round by round: results.json in the run folder."""

import json
import math
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule

from worldlm.federation.parameters import weights_digest
from worldlm.federation.state import NodeState
from worldlm.files.atomic_write import write_text
from worldlm.monitoring.node_metrics import MOMENTS
from worldlm.monitoring.organisation_scores import RECEIVED
from worldlm.monitoring.round_lines import RoundLines, find_rounds
from worldlm.monitoring.run_facts import code, data_facts, machine, tree_facts, versions
from worldlm.monitoring.summary import row
from worldlm.rounds import World
from worldlm.runs.lock import check_held
from worldlm.runs.results import FORMAT, RESULTS, RunRecord
from worldlm.topology import Node
from worldlm.topology.changes import Changes
from worldlm.trainer import FederationCallback, WorldTrainer

_SECONDS = "worldlm_seconds"


class Record(FederationCallback):
    """Writes `results.json` to the run folder at the end of every round, as strict JSON and atomically.

    It describes the run: seed, topology, digest of the initial weights, text and batches of every data node, versions.
    For every round it contains each node's figures of the closing table, the attention weights of every mixture, and
    the routes of the residuals. It also lists the topology changes between rounds. At the end of the run it contains
    digests of the final weights of all nodes, with which `worldlm fit --repeat` checks a repetition.

    Rounds without evaluation have no perplexity. A node that did not take part keeps its last perplexity, since its
    weights have not changed. Figures that are not finite are null. A run that was interrupted and resumed writes the
    same file as an uninterrupted one, except for `seconds` and `last_start`, which describes the command, machine and
    code of the last start.

    A checkpoint contains a digest of the rounds instead of the rounds, so its size does not grow with them. A resumed
    run reads them from the results.json of the checkpoint's run and drops those after the checkpoint.
    """

    def __init__(self) -> None:
        self.changes: list[dict[str, Any]] = []
        """The topology changes, each with the number of rounds before it."""
        self.noise_keys: list[dict[str, Any]] = []
        """The fingerprint of each noise key, with the number of rounds before it; empty without privacy."""
        self.initial_weights: str | None = None
        """Digest of the common initial weights; None if the run resumed from a checkpoint without a record."""
        self.final_weights: dict[str, str] | None = None
        """Digest of each node's final weights; None before the end of the run."""
        self.command = shlex.join(sys.argv)
        """The command line of this start."""
        self.began = False
        """Whether training has begun since this start."""
        self._rounds = RoundLines()  # in process 0, which writes the file
        self._expected: tuple[int, str] | None = None  # from a checkpoint: the number of rounds, and their digest
        self._routes = Counter[str]()  # up to the last finished round
        self._code: dict[str, str] = {}
        self._resumed = False
        self._seconds = 0.0  # of earlier starts
        self._started = time.monotonic()

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """The finished rounds, as in results.json."""
        return self._rounds.parsed()

    @staticmethod
    def path(trainer: WorldTrainer) -> Path:
        """Return the path of a run's record."""
        return trainer.folder / RESULTS

    def on_topology_change(self, world: World, changes: Changes, states: Mapping[str, NodeState]) -> None:
        self.changes.append({"round": world.changed_after, **changes.record()})

    def on_train_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        self._started, self.final_weights = time.monotonic(), None
        self.began = True
        key = trainer.noise_key
        if key is not None and key.fingerprint not in [last["fingerprint"] for last in self.noise_keys[-1:]]:
            self.noise_keys.append({"round": trainer.current_epoch, "fingerprint": key.fingerprint})
        if trainer.is_global_zero:
            self._code = {} if trainer.fast_dev_run else code()  # type: ignore[attr-defined]
            self._rounds = self._earlier_rounds(trainer)
        if self.initial_weights is None and not self._resumed:
            self.initial_weights = weights_digest(trainer.world.states[trainer.run_settings.main_node].parameters)

    def on_train_epoch_end(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        self._add_round(trainer)
        finished = trainer.world.round + 1 == trainer.max_epochs
        self.final_weights = _all_digests(trainer) if finished else None
        self._write(trainer, finished=finished)

    def on_train_end(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        self.final_weights = self.final_weights or _all_digests(trainer)
        self._write(trainer, finished=True)  # also if the run did not end by max_epochs

    def so_far(self, trainer: WorldTrainer) -> RunRecord:
        """Return the record of the run so far; call it at the end of a round."""
        self._add_round(trainer)
        return RunRecord(method=trainer.topology.name, folder=trainer.folder, content=self.content(trainer))

    def content(self, trainer: WorldTrainer, finished: bool = False) -> dict[str, Any]:
        """Return the content of results.json."""
        return {**self._head(trainer, finished), "rounds": self.rounds}

    # ------------------------------------------------------------------ content of results.json

    def _head(self, trainer: WorldTrainer, finished: bool) -> dict[str, Any]:
        max_epochs = trainer.max_epochs
        return {
            "format": FORMAT,
            "finished": finished,
            "rounds_done": len(self._rounds.lines),
            "rounds_wanted": max_epochs if max_epochs is not None and max_epochs >= 0 else None,
            "seed": trainer.seed,
            "changes": self.changes,
            **({"noise_keys": self.noise_keys} if self.noise_keys else {}),
            "topology": {"name": trainer.topology.name, "root": tree_facts(trainer.topology.root, None)},
            "initial_weights": self.initial_weights,
            "final_weights": self.final_weights,
            "data_nodes": data_facts(trainer),
            "versions": versions(),
            "seconds": round(self._elapsed(), 3),
            "last_start": {"command": self.command, **machine(trainer), "code": self._code, "written": _now()},
        }

    def _add_round(self, trainer: WorldTrainer) -> None:
        if not trainer.is_global_zero or self._rounds.last >= trainer.world.round:  # `so_far` has added it
            return
        before, self._routes = self._routes, trainer.method.routes(trainer.world)
        self._rounds.add(self._round(trainer, self._routes - before))

    @staticmethod
    def _round(trainer: WorldTrainer, routes: Counter[str]) -> dict[str, Any]:
        states = trainer.world.states
        return {
            "round": trainer.world.round,
            "nodes": {node.name: _figures(trainer, node) for node in trainer.topology.nodes.values()},
            "mixtures": {
                name: {receiver: dict(sorted(row.items())) for receiver, row in sorted(state.attention.items())}
                for name, state in states.items()
                if state.attention
            },
            "routes": dict(sorted(routes.items())),
        }

    def _write(self, trainer: WorldTrainer, *, finished: bool) -> None:
        if trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return  # a trial run writes no files, and only process 0 writes
        check_held(trainer.folder)
        text = _serialize(self._head(trainer, finished), {"rounds": self._rounds.lines})
        write_text(self.path(trainer), text, to_disk=True)  # a checkpoint that refers to it may follow

    # ------------------------------------------------------------------ checkpoints

    def _elapsed(self) -> float:
        return self._seconds + time.monotonic() - self._started

    def _earlier_rounds(self, trainer: WorldTrainer) -> RoundLines:
        """Return the rounds that were finished before this start."""
        if self._expected is None:
            rounds = self._rounds.before(trainer.current_epoch)
            self._routes = self._routes if rounds is self._rounds else rounds.routes()  # used in another run before
            return rounds
        (number, digest), self._expected = self._expected, None
        checkpoint = Path(str(trainer.ckpt_path)).absolute()
        linked = checkpoint.resolve().parents[1]
        return find_rounds(number, digest, (checkpoint.parents[1], checkpoint.parent, trainer.folder, linked))

    def state_dict(self) -> dict[str, Any]:
        state = {
            "initial_weights": self.initial_weights,
            "num_rounds": len(self._rounds.lines),
            "rounds_digest": self._rounds.digest,
            "routes": dict(self._routes),
        }
        lists = {"changes": list(self.changes), "noise_keys": list(self.noise_keys)}
        return {**state, **{name: entries for name, entries in lists.items() if entries}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.initial_weights = state_dict["initial_weights"]
        if "rounds" in state_dict:  # checkpoints of older versions contain the rounds
            self._rounds = RoundLines(state_dict["rounds"])
            self._expected = None
            self._routes = self._rounds.routes()
        else:
            self._expected = state_dict["num_rounds"], state_dict["rounds_digest"]
            self._routes = Counter(state_dict["routes"])
        self.changes = list(state_dict.get("changes", []))
        self.noise_keys = list(state_dict.get("noise_keys", []))

    def on_save_checkpoint(self, trainer: Any, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[_SECONDS] = self._elapsed()  # not in the state, which must not depend on interruptions

    def on_load_checkpoint(self, trainer: Any, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._resumed, self._seconds = True, float(checkpoint.get(_SECONDS, 0.0))


def _all_digests(trainer: WorldTrainer) -> dict[str, str] | None:
    """Return the digest of every node's weights. All processes must call this at the same point."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    world, digests = trainer.world, dict[str, str]()
    for part in world.transport.gather(
        {
            name: weights_digest(state.parameters)
            for name, state in world.states.items()
            if world.transport.is_local(name)
        }
    ):
        digests |= part
    return {name: digests[name] for name in world.states if name in digests}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON atomically, with one line per item of a top-level list.

    Raises:
        ValueError: If the content contains NaN or infinity.
    """
    write_text(path, _serialize(content))


def _serialize(content: Mapping[str, Any], more: Mapping[str, Sequence[str]] | None = None) -> Iterator[str]:
    """Yield the text of a JSON object without indentation, which would be many times slower.

    Args:
        content: The object.
        more: Lists that are added at the end, whose items are JSON already.
    """
    start = "{\n"
    for name, value in content.items():
        yield f"{start} {json.dumps(name)}: "
        if isinstance(value, list):
            yield from _items([json.dumps(item, allow_nan=False) for item in value])
        else:
            yield json.dumps(value, allow_nan=False)
        start = ",\n"
    for name, lines in (more or {}).items():
        yield f"{start} {json.dumps(name)}: "
        yield from _items(lines)
    yield "\n}\n"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _items(lines: Sequence[str]) -> Iterator[str]:
    yield "[\n  "
    for i, line in enumerate(lines):
        yield f",\n  {line}" if i else line
    yield "\n ]"


def _figures(trainer: WorldTrainer, node: Node) -> dict[str, Any]:
    columns, figures = row(trainer, node), dict[str, Any]()
    for moment in (*MOMENTS, RECEIVED):
        if moment in columns and (moment == MOMENTS[0] or trainer.fit_loop.evaluates):
            figures[moment] = {
                "perplexity": _finite(columns[moment]),
                "bits_per_byte": _finite(columns.get(f"{moment} bits", math.nan)),
            }
    figures |= {name: _finite(columns[name]) for name in ("tokens", "passes", "missed", "refused") if name in columns}
    # rounded: the last bits of an accountant's integral depend on the number of threads
    keys = {"epsilon": "epsilon", "example epsilon": "example_epsilon"}
    figures |= {key: _finite(round(columns[column], 9)) for column, key in keys.items() if column in columns}
    figures |= {f"bytes_{way}": round(columns[f"MB {way}"] * 1e6) for way in ("down", "up") if f"MB {way}" in columns}
    return figures


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
