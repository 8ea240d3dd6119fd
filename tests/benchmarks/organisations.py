"""What it costs to run every node of a world as an organisation of its own, beside the simulation of the same world.

    python tests/benchmarks/organisations.py [--parts rounds memory messages] [--leaves 2] [--rounds 5] [--repeats 3]
                                             [--threads 1] [--folder DIR]

The world is a root without text and its leaves, with FedAvg of the whole model on the sources of Python's standard
library. Every process has one thread, all are on this machine, and messages travel over loopback with mutual TLS.

- `rounds`: CPU and wall seconds of a round as one process (`worldlm fit`) and as organisations (`worldlm serve` and
  `worldlm join`), in turn. Printed are medians of all rounds but the first. A checkpoint is written after each round.
- `memory`: the most memory that each process ever held in several runs, beside that of a run of one leaf alone.
- `messages`: MB/s and CPU seconds of messages of 300 MB, beside plain gRPC with the same certificates, which streams
  the same file in pieces of 1 MiB, in turn. "File to file" is what the network's side of a mailbox does: digests, TLS,
  and a copy that is on disk. "Model to model" also saves the message before, and checks and copies it after.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback

JOBS = {
    "3.2 M, 5 steps": ({"num_blocks": 4, "d_model": 256, "num_heads": 4}, 5),
    "3.2 M, 20 steps": ({"num_blocks": 4, "d_model": 256, "num_heads": 4}, 20),
    "75 M, 5 steps": ({"num_blocks": 6, "d_model": 1024, "num_heads": 16}, 5),
}
"""Name -> the architecture, and the local steps of a round."""

LARGE = "75 M, 5 steps"


# ---------------------------------------------------------------------- whole runs


class Clock(Callback):
    """Notes the seconds of this process at the end of every round."""

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / f"{os.getpid()}.json"
        self.imports = memory()
        self.ends: list[tuple[float, float]] = []

    def on_train_epoch_end(self, *args: Any) -> None:
        """Note the end of a round."""
        self.ends.append((time.monotonic(), time.process_time()))

    def on_fit_end(self, *args: Any) -> None:
        """Report."""
        self.path.write_text(json.dumps({"imports": self.imports, "ends": self.ends}))


def memory() -> float:
    """Return what this process holds, in MB; on Linux."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024 / 1e6


@dataclass(frozen=True, slots=True)
class Process:
    """What one process of a run reports."""

    ends: list[tuple[float, float]]
    """Wall and CPU seconds at the end of every round."""
    imports: float
    """MB before the model was made."""
    peak: float
    """MB at most."""


@dataclass(frozen=True, slots=True)
class World:
    """A world in a folder of its own: recipe, topologies, keys."""

    folder: Path
    leaves: int
    threads: int

    @property
    def names(self) -> list[str]:
        """The leaves."""
        return [f"leaf{number}" for number in range(self.leaves)]

    def write(self, job: str, rounds: int) -> None:
        """Write recipe, topologies and keys."""
        architecture, steps = JOBS[job]
        last = architecture["num_blocks"] - 1
        split = {"keys": [rf"blocks\.{last}\.attn\."], "values": [rf"blocks\.{last}\."]}
        text = {"class_path": "worldlm.data.StandardLibrary", "init_args": {"area": "topics"}}
        callbacks = [
            {"class_path": "organisations.Clock", "init_args": {"folder": str(self.folder)}},
            {"class_path": "worldlm.callbacks.Averaging", "init_args": {"parts": ["backbone", "keys", "values"]}},
        ]
        recipe = {
            "seed_everything": 1,
            "model": {"architecture": {**architecture, "max_seq_len": 64, "vocab_size": 257}, "split": split},
            "data": {
                "tokenizer": "bytes", "batch_size": 4, "cache_dir": str(self.folder / "packed"),
                "corpora": {"text": text},
            },
            "trainer": {
                "max_epochs": rounds, "limit_val_batches": 0, "gradient_clip_val": 1.0, "accelerator": "cpu",
                "enable_progress_bar": False, "callbacks": callbacks,
            },
        }  # fmt: skip
        self._dump("world.yaml", recipe)
        children = [{"name": name, "corpus": "text"} for name in self.names]
        settings = {"num_local_steps": steps}
        self._dump("tree.yaml", {"name": "tree", "settings": settings, "root": {"name": "root", "children": children}})
        self._dump("alone.yaml", {"name": "alone", "settings": settings, "root": {"name": "leaf0", "corpus": "text"}})
        create_keys(self.folder, self.names)

    def _dump(self, name: str, content: Any) -> None:
        (self.folder / name).write_text(yaml.safe_dump(content))

    def simulate(self, topology: str = "tree.yaml") -> list[Process]:
        """Run all nodes in one process."""
        return self._run([["fit", *self._options(topology), "--runs", "simulated"]])

    def organisations(self) -> list[Process]:
        """Run every node in a process of its own: the root first."""
        options, address = self._options("tree.yaml"), f"127.0.0.1:{free_port()}"
        serve = ["serve", *options, "--node", "root", "--listen", address]
        joins = [["join", *options, "--node", name, "--parent", address] for name in self.names]
        return self._run([serve, *joins])

    def _options(self, topology: str) -> list[str]:
        return ["--recipe", "world.yaml", "--federation.topology", topology]

    def _run(self, commands: list[list[str]]) -> list[Process]:
        """Run commands side by side, and return what their processes report."""
        running: dict[int, tuple[subprocess.Popen[bytes], Path]] = {}
        peaks: dict[int, float] = {}
        for number, words in enumerate(commands):
            log = self.folder / f"{number}.log"
            with log.open("wb") as output:
                process = start(["-m", "worldlm", *words], self.folder, self.threads, stdout=output, stderr=output)
            running[process.pid] = (process, log)
        while len(peaks) < len(running):
            pid, code, usage = os.wait4(-1, 0)
            peaks[pid] = usage.ru_maxrss * 1024 / 1e6
            if code != 0:
                for process, _ in running.values():
                    process.kill()
                raise SystemExit(running[pid][1].read_text())
        reports = {pid: json.loads((self.folder / f"{pid}.json").read_text()) for pid in running}
        shutil.rmtree(self.folder / "simulated", ignore_errors=True)
        for name in ("root", *self.names):
            for part in ("runs", "mail"):
                shutil.rmtree(self.folder / name / part, ignore_errors=True)
        os.sync()  # what this run wrote must not slow the next one
        return [Process(report["ends"], report["imports"], peaks[pid]) for pid, report in reports.items()]


def create_keys(folder: Path, children: Iterable[str]) -> None:
    """Create the keys of a root and its children, whom it admits."""
    from worldlm.organisations.identity import Identity

    root = Identity(folder / "root" / "identity")
    if root.folder.exists():
        return
    root.create("root")
    for name in children:
        child = Identity(folder / name / "identity")
        child.create(name)
        answer = folder / f"{name}.pem"
        answer.write_bytes(root.admit(child.folder / "request.csr")[1])
        child.accept(answer)


def free_port() -> int:
    """Return a port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(words: list[str], folder: Path, threads: int, **options: Any) -> subprocess.Popen[bytes]:
    """Start Python in a folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "GRPC_VERBOSITY": "ERROR"}
    path = [str(Path(__file__).parent), str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    return subprocess.Popen([sys.executable, *words], cwd=folder, env=environment, **options)


def rounds_of(processes: list[Process]) -> Iterator[tuple[float, float]]:
    """Yield the wall and the CPU seconds of every round but the first."""
    for before, after in pairwise(zip(*(process.ends for process in processes), strict=True)):
        wall = max(end for end, _ in after) - max(end for end, _ in before)
        yield wall, sum(cpu for _, cpu in after) - sum(cpu for _, cpu in before)


def measure_rounds(options: argparse.Namespace, folder: Path) -> None:
    """Print what a round takes as one process and as organisations."""
    print(f"{'a round':31} {'CPU':>8} {'wall':>8}")
    for job in options.jobs:
        world = World(folder, options.leaves, options.threads)
        world.write(job, options.rounds)
        found: dict[str, list[tuple[float, float]]] = {"simulation": [], "organisations": []}
        for _ in range(options.repeats):
            found["simulation"] += rounds_of(world.simulate())
            found["organisations"] += rounds_of(world.organisations())
        medians = {}
        for name, rounds in found.items():
            wall, cpu = medians[name] = [median(column) for column in zip(*rounds, strict=True)]
            print(f"{job:17}{name:14} {cpu:6.2f} s {wall:6.2f} s")
        wall, cpu = (a / b for a, b in zip(medians["organisations"], medians["simulation"], strict=True))
        print(f"{job:17}{'ratio':14} {cpu:7.2f}x {wall:7.2f}x", flush=True)


def measure_memory(options: argparse.Namespace, folder: Path) -> None:
    """Print the most memory of every process."""
    world = World(folder, options.leaves, options.threads)
    world.write(LARGE, rounds=2)
    names = ["one leaf alone", "root", *world.names]
    runs = [world.simulate("alone.yaml") + world.organisations() for _ in range(options.repeats)]
    found = {
        name: max(processes, key=lambda process: process.peak)
        for name, processes in zip(names, zip(*runs, strict=True), strict=True)
    }
    print(f"{LARGE:17} {'peak':>8} {'imports':>8} {'over one leaf alone':>22}")
    for name, process in found.items():
        over = process.peak - found["one leaf alone"].peak
        print(f"{name:17} {process.peak:5.0f} MB {process.imports:5.0f} MB {over:19.0f} MB", flush=True)


# ---------------------------------------------------------------------- single messages


@dataclass(frozen=True, slots=True)
class Cost:
    """What one transfer took: wall seconds, and CPU seconds at both ends."""

    wall: float
    sender: float
    receiver: float


class End:
    """The process at one end of a connection, `organisations_end.py`."""

    def __init__(self, folder: Path, threads: int, name: str, addresses: list[str]) -> None:
        script = str(Path(__file__).with_name("organisations_end.py"))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = start([script, str(folder), name, *addresses], folder, threads, **pipes)

    def tell(self, *words: Any) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Wait for the answer to a line."""
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise SystemExit("one end has failed")
        return json.loads(line)

    def ask(self, *words: Any) -> Any:
        """Send a line, and wait for the answer."""
        self.tell(*words)
        return self.answer()

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def measure_messages(options: argparse.Namespace, folder: Path) -> None:
    """Print what messages take, with a mailbox and without."""
    create_keys(folder, ["leaf0"])
    torch.save({f"tensor{number}": torch.randn(1024, 4096) for number in range(18)}, folder / "message")
    megabytes = (folder / "message").stat().st_size / 1e6
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    root, leaf = (End(folder, options.threads, name, addresses) for name in ("root", "leaf0"))
    found: dict[tuple[str, str], list[Cost]] = {}
    for number in range(2 * (options.repeats + 1)):
        way, sender, receiver = ("down", root, leaf) if number % 2 else ("up", leaf, root)
        costs = {
            "plain gRPC": copy(folder, way, root, leaf, sync=False),
            "plain gRPC, on disk": copy(folder, way, root, leaf, sync=True),
            **mail(way, number, sender, receiver),
        }
        for kind, cost in costs.items():
            found.setdefault((way, kind), []).extend([cost] if number > 1 else [])  # the first of each warms up
    root.stop()
    leaf.stop()
    print(f"{f'{megabytes:.0f} MB':30} {'MB/s':>6} {'CPU of sender':>14} {'receiver':>14} {'over plain':>11}")
    for (way, kind), costs in found.items():
        wall, sent, received = (
            median(getattr(cost, name) for cost in costs) for name in ("wall", "sender", "receiver")
        )
        plain = median(cost.sender + cost.receiver for cost in found[way, "plain gRPC"])
        ratio = median(cost.sender + cost.receiver for cost in costs) / plain
        columns = f"{1000 * sent / megabytes:8.2f} ms/MB {1000 * received / megabytes:8.2f} ms/MB {ratio:10.2f}x"
        print(f"{way:5}{kind:25} {megabytes / wall:6.0f} {columns}")


def copy(folder: Path, way: str, root: End, leaf: End, sync: bool) -> Cost:
    """Let plain gRPC copy the file of a message."""
    os.sync()  # what was written before must not slow this down
    (_, before), _ = root.ask("now")
    began, ended = leaf.ask("copy", way, sync)
    (_, after), _ = root.ask("now")
    (folder / "copy").unlink()  # the next one is a new file, as each message is
    ours, theirs = ended[1] - began[1], after - before
    return Cost(ended[0] - began[0], *((ours, theirs) if way == "up" else (theirs, ours)))


def mail(way: str, number: int, sender: End, receiver: End) -> dict[str, Cost]:
    """Let a mailbox send a message."""
    os.sync()
    receiver.tell("receive", way, number)
    began, saved, delivered = sender.ask("send", way, number)
    waiting, stored, read = receiver.answer()
    for end in (sender, receiver):
        end.ask("forget", number)
    return {
        "mailbox, file to file": Cost(stored[0] - saved[0], delivered[1] - saved[1], stored[1] - waiting[1]),
        "mailbox, model to model": Cost(read[0] - began[0], delivered[1] - began[1], read[1] - waiting[1]),
    }


MEASURES = {"rounds": measure_rounds, "memory": measure_memory, "messages": measure_messages}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--leaves", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    for part in options.parts:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            MEASURES[part](options, Path(folder))


if __name__ == "__main__":
    main()
