"""Runs as processes: so many at a time, stopped together, told about line by line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from worldlm.cli.safe_mode import OPTION
from worldlm.commands.compare.plan import PlannedRun
from worldlm.commands.compare.records import is_finished

STDERR = "stderr.txt"
STDOUT = "stdout.txt"

_SECONDS_TO_STOP = 120.0
_LINES_OF_AN_ERROR = 5


class Process(Protocol):
    """A run at work; `subprocess.Popen` is one."""

    def poll(self) -> int | None:
        """Return its exit status, None while it works."""

    def terminate(self) -> None:
        """Ask it to save a checkpoint and end."""

    def kill(self) -> None:
        """End it at once."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""


Start = Callable[[PlannedRun, int], Process]
"""Starts a run with so many threads."""
Tell = Callable[[str], None]


@dataclass(slots=True)
class _Working:
    run: PlannedRun
    number: int
    process: Process
    since: float


def start_process(run: PlannedRun, threads: int) -> Process:
    """Start a run as a process of its own, whose output goes to files in its folder."""
    alone = ["-P"] if OPTION in run.command else []  # or Python would look in the current folder first
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}  # what the user has set wins
    with (run.folder / STDOUT).open("w") as out, (run.folder / STDERR).open("w") as err:
        return subprocess.Popen(
            [sys.executable, *alone, "-m", "worldlm", *run.command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment,
            start_new_session=True,  # a Ctrl-C reaches it once, through us
        )


def execute(
    runs: Sequence[PlannedRun],
    *,
    jobs: int = 1,
    start: Start = start_process,
    tell: Tell = print,
    seconds_between_looks: float = 0.2,
) -> list[PlannedRun]:
    """Carry out the runs that are not finished; a failure ends one run, not the others.

    Args:
        runs: The runs, in the order in which they start.
        jobs: How many work at a time.
        start: Starts one.
        tell: Takes a line for every run that starts, ends, or was finished before.
        seconds_between_looks: Pause between two looks at the processes.

    Returns:
        The runs that failed.
    """
    waiting, working, failed = deque(enumerate(runs, 1)), list[_Working](), list[PlannedRun]()
    threads = max(1, num_cores() // jobs)
    try:
        with _stopped_by_sigterm():
            while waiting or working:
                while waiting and len(working) < jobs:
                    number, run = waiting.popleft()
                    place = f"[{number}/{len(runs)}] {run.title}"
                    if is_finished(run.folder):
                        tell(f"{place}: finished before")
                        continue
                    again = any(run.folder.glob("version_*/checkpoints/last.ckpt"))
                    _keep_settings(run)
                    tell(f"{place}: {'goes on' if again else 'starts'}")
                    working.append(_Working(run, number, start(run, threads), time.monotonic()))
                for one in [one for one in working if one.process.poll() is not None]:
                    working.remove(one)
                    if not _tell_end(one, len(runs), tell):
                        failed.append(one.run)
                if working:
                    time.sleep(seconds_between_looks)
    finally:
        _stop([one.process for one in working], tell)
    return failed


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _keep_settings(run: PlannedRun) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    run.settings_file.write_text(json.dumps(run.settings, indent=1) + "\n", "utf-8")


def _tell_end(one: _Working, total: int, tell: Tell) -> bool:
    """Tell how a run ended, and return whether it ended well."""
    place = f"[{one.number}/{total}] {one.run.title}"
    status = one.process.poll()
    if status == 0 and is_finished(one.run.folder):
        tell(f"{place}: done in {time.monotonic() - one.since:.0f} s")
        return True
    why = f"failed with status {status}" if status else "ended without a finished results.json"
    tell(f"{place}: {why}; see {one.run.folder / STDERR}")
    for line in last_lines(one.run.folder / STDERR, _LINES_OF_AN_ERROR):
        tell(f"    {line}")
    return False


def last_lines(path: Path, number: int) -> list[str]:
    """Return the last lines of a text that are not blank; none if there is no such file."""
    if not path.is_file():
        return []
    lines = [line.rstrip() for line in path.read_text("utf-8", "replace").splitlines()]
    return [line for line in lines if line][-number:]


def _stop(processes: Sequence[Process], tell: Tell) -> None:
    """End processes kindly: they save their worlds. A second Ctrl-C ends them at once."""
    if not processes:
        return
    tell("stopping; Ctrl-C again stops at once, without checkpoints")
    try:
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + _SECONDS_TO_STOP
        for process in processes:
            process.wait(max(0.0, deadline - time.monotonic()))
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        pass
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process as Ctrl-C does, children first."""

    def leave(*_: object) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
