"""Count the mutated topologies and recipes that are read, or rejected in one line: `hostile_files.py KIND NUMBER`.

KIND is `topology` (loaded), `recipe` (its keys and classes checked), or `command` (a recipe through the whole command
line, up to where a world would be built). A file fails if it raises an undocumented exception, if a mistake is not one
line, if it takes more than one second and ten seconds for each MB, or if it takes 200 MB more memory. Files that failed
are kept.
"""

from __future__ import annotations

import argparse
import collections
import io
import os
import resource
import signal
import stat
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from mutations import mutate

from worldlm.topology import TopologyError, find_file, parse_topology
from worldlm.topology.errors import UserError
from worldlm.topology.reader import read_text

BYTES_OF_MEMORY = 200e6
_HANG = 300


def seeds(kind: str) -> list[bytes]:
    """Return the files that come with WorldLM."""
    folder = find_file("topologies", "quickstart").parent
    if kind != "topology":
        folder = find_file("recipes", "quickstart").parent
    # a hundred thousand nodes are in order, and take half a second each time
    return [path.read_bytes() for path in sorted(folder.rglob("*.yaml")) if path.stem != "hundred_thousand"]


class InMemory:
    """A path to content in memory, for the readers of topologies and recipes. It takes no time for the disk."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __str__(self) -> str:
        return "hostile.yaml"

    def stat(self) -> SimpleNamespace:
        """Return the status of a regular file."""
        return SimpleNamespace(st_mode=stat.S_IFREG)

    def open(self, mode: str) -> io.BytesIO:
        """Open it."""
        return io.BytesIO(self.content)


def on_disk(content: bytes) -> Path:
    """Write the content to a file, always the same one."""
    path = Path("/dev/shm" if os.path.isdir("/dev/shm") else "/tmp") / f"hostile-{os.getpid()}.yaml"
    path.write_bytes(content)
    return path


def read_topology(content: bytes) -> None:
    """Load a topology."""
    parse_topology(read_text(InMemory(content), TopologyError), "hostile.yaml")


def recipe_reader() -> Callable[[bytes], object]:
    """Return a function that checks the keys and classes of a recipe."""
    from worldlm.cli.recipe import read_recipe

    cli = _command_line()
    return lambda content: read_recipe(InMemory(content), cli.known, safe=True)


def command_reader() -> Callable[[bytes], object]:
    """Return a function that reads a recipe as `worldlm fit --safe` does, without building anything."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from worldlm.cli.explain import explain
    from worldlm.cli.recipe import read_recipe
    from worldlm.cli.safe_mode import restricted_imports

    cli = _command_line()
    base = str(find_file("recipes", "quickstart"))

    def read(content: bytes) -> None:
        path = on_disk(content)
        readers = [read_recipe(path, cli.known, safe=True)]
        try:
            with restricted_imports():
                cli.parser.parse_args(["fit", "--recipe", base, "--recipe", str(path)])
        except (ValueError, MisconfigurationException, FileNotFoundError) as error:  # as `run` does
            raise UserError(explain(str(error), readers, cli.known).splitlines()) from error

    return read


def _command_line() -> Any:
    from worldlm.cli.parser import parse_command_line
    from worldlm.cli.recipe_cli import RecipeCLI

    class Reading(RecipeCLI):
        def instantiate_classes(self) -> None:
            """Build nothing."""

        def after_instantiate_classes(self) -> None:
            """Set nothing up."""

        def _run_subcommand(self, subcommand: str) -> None:
            pass

    return Reading(parse_command_line(["fit", "--recipe", "quickstart"]))


def fault(read: Callable[[bytes], object], content: bytes) -> tuple[str, str]:
    """Read a file, and return its fault, or an empty string, and how the reading ended."""
    try:
        read(content)
        return "", "read"
    except UserError as error:
        return _form(error), "rejected"
    except FileNotFoundError:
        return "", "not found"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/worldlm/" in frame.filename][-1:]
        where = [(frame.name, frame.lineno) for frame in frames]
        return f"{type(error).__name__} in {where}: {str(error)[:200]}", "failed"


def too_long(read: Callable[[bytes], object], content: bytes, seconds: float) -> str:
    """Return a fault if a file took too long. CPU time decides, because other processes may run."""
    allowed = 1 + 10 * len(content) / 1e6
    if seconds <= allowed:
        return ""
    started = time.process_time()
    fault(read, content)
    taken = time.process_time() - started
    return f"took {taken:.1f} s for {len(content)} bytes" if taken > allowed else ""


def _form(error: UserError) -> str:
    for mistake in error.mistakes:
        if not mistake.strip() or len(mistake.splitlines()) != 1 or "Traceback" in mistake:
            return f"a mistake is no line: {mistake[:200]!r}"
        if len(mistake) > 3000:
            return f"a mistake has {len(mistake)} characters: {mistake[:100]!r}"
    return "" if error.mistakes else "the error has no line"


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Read a number of files, and print how the reading ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("topology", "recipe", "command"))
    parser.add_argument("number", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seldom", type=float, default=0.03, help="share of changes that make large files")
    parser.add_argument("--keep", type=Path, default=Path("hostile"), help="folder of the files that failed")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (12_000_000_000, resource.RLIM_INFINITY))
    read = {"topology": lambda: read_topology, "recipe": recipe_reader, "command": command_reader}[options.kind]()
    files, ends, faults = seeds(options.kind), collections.Counter[str](), collections.Counter[str]()
    first = before = _peak()
    started, slowest, most = time.monotonic(), 0.0, 0.0
    signal.signal(signal.SIGALRM, _give_up)
    for number in range(options.number):
        data = mutate(Random(f"{options.seed} {options.kind} {number}"), files, options.seldom)
        if number % 100 == 0:  # not for every file, because these system calls take as long as a small file
            signal.alarm(_HANG)
            most, before = max(most, _peak() - before), _peak()
        begun = time.perf_counter()
        message, end = fault(read, data)
        seconds = time.perf_counter() - begun
        message = message or too_long(read, data, seconds)
        slowest = max(slowest, seconds)
        ends[end] += 1
        if message:
            faults[message[:60]] += 1
            if faults[message[:60]] <= 3:
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / f"{options.kind}-{options.seed}-{number}.yaml").write_bytes(data)
                print(f"{options.kind} {options.seed} {number}: {message}", flush=True)
        if (number + 1) % max(1, options.number // 10) == 0:
            progress = f"{time.monotonic() - started:.0f} s, {dict(ends)}, {sum(faults.values())} faults"
            print(f"{number + 1} files, {progress}", flush=True)
    grown = max(most, _peak() - before)
    if grown > BYTES_OF_MEMORY:
        faults[f"100 files took {grown / 1e6:.0f} MB more memory"] += 1
    print(
        f"done. {options.number} files of kind {options.kind}: {time.monotonic() - started:.0f} s, "
        f"slowest {slowest:.2f} s, peak {_peak() / 1e6:.0f} MB, {(_peak() - first) / 1e6:.0f} more than at the start; "
        f"{dict(ends)}; faults {dict(faults)}"
    )


def _give_up(*_: object) -> None:
    raise TimeoutError(f"a hundred files took more than {_HANG} s")


if __name__ == "__main__":
    main()
