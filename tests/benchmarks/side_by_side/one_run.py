"""Runs one system once, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

from job import TOP, Job, Workspace, save_weights
from process_tree import memory

SYSTEMS = {
    "bare": "bare.py",
    "bare_malloc": "bare.py",
    "worldlm": "worldlm_fit.py",
    "worldlm_checkpoints": "worldlm_fit.py",
    "worldlm_paged": "worldlm_fit.py",
    "worldlm_host": "worldlm_fit.py",
    "pfl": "apple_pfl.py",
    "flower": "flower.py",
    "lightning": "naive_lightning.py",
    "lightning_quiet": "naive_lightning.py",
}
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""The settings of glibc's allocator that `worldlm fit` makes by itself, for the bare loop."""
SECONDS_BETWEEN_SAMPLES = 0.1


class Skipped(Exception):
    """A system that cannot do the job here."""


def prepare(folder: Path, job: Job) -> None:
    """Make a folder a workspace of a job: text, batches and initial weights."""
    import worldlm_fit

    Workspace.save_job(folder, job)
    with redirect_stderr(StringIO()):  # drops the progress of the packing
        worldlm_fit.prepare(folder, job)
    save_weights(folder / "initial.npz", worldlm_fit.initial_weights(folder, job))


def run(system: str, folder: Path, processes: int, threads: int) -> tuple[list[tuple[float, float]], float]:
    """Run a system once.

    Returns:
        Wall and CPU seconds of each round, and the largest memory of the process tree in MB.

    Raises:
        Skipped: If the system prints that it cannot run, or fails.
    """
    script = Path(__file__).parent / SYSTEMS[system]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    paths = [str(TOP), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "BENCHMARK_START": str(time.time())}
    environment |= MALLOC if system == "bare_malloc" else {}
    command = [sys.executable, str(script), str(folder), system, str(processes), str(threads)]
    with (folder / f"{system}.log").open("w+") as log:
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
        peak = 0.0
        try:
            while child.poll() is None:
                peak = max(peak, memory(child.pid))
                time.sleep(SECONDS_BETWEEN_SAMPLES)
        finally:
            child.kill()
        log.seek(0)
        lines = log.read().splitlines()
    for line in lines:
        if line.endswith("GPU's memory"):
            print(f"{system}: {line}", flush=True)
        if line.startswith("MEASURED "):
            return [(wall, cpu) for wall, cpu in json.loads(line.removeprefix("MEASURED "))], peak
    raise Skipped(lines[-1].removeprefix("skipped: ") if lines else f"status {child.returncode}, without output")
