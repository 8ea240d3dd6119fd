"""Carries out runs as processes: some at a time, stopped together, each reported in a line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from worldlm.commands.compare.plan import PlannedRun
from worldlm.commands.compare.records import is_finished
from worldlm.files.atomic_write import write_text
from worldlm.files.regular import check_regular
from worldlm.runs.lock import is_at_work
from worldlm.runs.parent_process import bound_to_this_process

STDERR = "stderr.txt"
STDOUT = "stdout.txt"

_SECONDS_TO_STOP = 120.0
_ERROR_LINES = 5


class Process(Protocol):
    """The process of a run, such as `subprocess.Popen`."""

    def poll(self) -> int | None:
        """Return its exit status; None while it runs."""

    def terminate(self) -> None:
        """Let it save a checkpoint and end."""

    def kill(self) -> None:
        """End it at once."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""


Start = Callable[[PlannedRun, int], Process]
"""Starts a run with a number of threads."""
Report = Callable[[str], None]
"""Takes a line about a run."""


@dataclass(slots=True)
class _Job:
    run: PlannedRun
    label: str
    process: Process
    started: float


def start_process(run: PlannedRun, threads: int) -> Process:
    """Start a run as a process of its own, whose output goes to files in its folder."""
    # -P keeps Python from importing modules of the current folder first
    isolated = ["-P"] if run.safe else []
    environment = {
        "OMP_NUM_THREADS": str(threads),  # the user's own setting wins
        **os.environ,
        **bound_to_this_process(signal.SIGTERM),  # if this process is killed, the run saves a checkpoint and ends
    }
    out_file, err_file = (check_regular(run.folder / name) for name in (STDOUT, STDERR))
    with out_file.open("w") as out, err_file.open("w") as err:
        return subprocess.Popen(
            [sys.executable, *isolated, "-m", "worldlm", *run.command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process only, which then stops the run
        )


def execute(
    runs: Sequence[PlannedRun],
    *,
    jobs: int = 1,
    start: Start = start_process,
    report: Report = print,
    poll_seconds: float = 0.2,
) -> list[PlannedRun]:
    """Carry out the runs that are not finished. A run that fails does not end the others.

    Args:
        runs: The runs, in the order in which they start.
        jobs: Number of runs at the same time.
        start: Starts a run.
        report: Takes a line for every run that starts, ends, or was finished before.
        poll_seconds: Pause between two looks at the processes.

    Returns:
        The runs that failed.
    """
    waiting, working, failed = deque(enumerate(runs, 1)), list[_Job](), list[PlannedRun]()
    orphans = set[int]()
    threads = max(1, num_cores() // jobs)
    try:
        while waiting or working:
            # runs of an earlier comparison that was killed are waited for, and then looked at again
            for number, run in [each for each in waiting if _is_running(each[1]) and each[0] not in orphans]:
                orphans.add(number)
                report(f"[{number}/{len(runs)}] {run.title}: still running since an earlier start; waiting for it")
            while len(working) < jobs and (ready := [each for each in waiting if not _is_running(each[1])]):
                number, run = ready[0]
                waiting.remove(ready[0])
                label = f"[{number}/{len(runs)}] {run.title}"
                if is_finished(run.folder):
                    report(f"{label}: finished before")
                else:
                    working.append(_start(run, label, start, threads, report))
            for job in [job for job in working if job.process.poll() is not None]:
                working.remove(job)
                if not _report_end(job, report):
                    failed.append(job.run)
            if working or (waiting and not ready):
                time.sleep(poll_seconds)
    finally:
        _stop([job.process for job in working], report)
    return failed


def _is_running(run: PlannedRun) -> bool:
    """Return whether a process that this one did not start writes to a run's folder."""
    return any(is_at_work(folder) for folder in run.folder.glob("version_*"))


def _start(run: PlannedRun, label: str, start: Start, threads: int, report: Report) -> _Job:
    resumes = any(run.folder.glob("version_*/checkpoints/last.ckpt"))
    run.folder.mkdir(parents=True, exist_ok=True)
    write_text(run.settings_file, json.dumps(run.settings, indent=1) + "\n")
    report(f"{label}: {'resumes' if resumes else 'starts'}")
    return _Job(run, label, start(run, threads), time.monotonic())


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _report_end(job: _Job, report: Report) -> bool:
    """Report how a run ended, and return whether it succeeded."""
    status = job.process.poll()
    if status == 0 and is_finished(job.run.folder):
        report(f"{job.label}: done in {time.monotonic() - job.started:.0f} s")
        return True
    reason = f"failed with status {status}" if status else "ended without a finished results.json"
    report(f"{job.label}: {reason}; see {job.run.folder / STDERR}")
    for line in last_lines(job.run.folder / STDERR, _ERROR_LINES):
        report(f"    {line}")
    return False


def last_lines(path: Path, number: int) -> list[str]:
    """Return the last lines of a text that are not blank; none if there is no such file."""
    if not path.is_file():
        return []
    lines = [line.rstrip() for line in path.read_text("utf-8", "replace").splitlines()]
    return [line for line in lines if line][-number:]


def _stop(processes: Sequence[Process], report: Report) -> None:
    """End processes after they have saved their worlds. A second Ctrl-C ends them at once."""
    if not processes:
        return
    report("stopping; Ctrl-C again stops at once, without checkpoints")
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
