"""Side by side: the cost of federated rounds in WorldLM, in a bare PyTorch loop, and in other systems.

    python tests/benchmarks/side_by_side [--jobs small,large] [--systems bare,worldlm] [--layouts 1x2,2x1] [--repeats 2]

Every system does the same job: FedAvg of the same module on the same batches in the same order, with a fused AdamW that
is fresh in every round, and clipped gradients. `bare_malloc` is the bare loop with an allocator that keeps freed memory
and requests huge pages, as in `worldlm fit`. Each system runs in its own process, in turn with the others; CPU time and
memory are those of the process and all processes that it starts. A layout is processes x threads. The table has medians
of all rounds except the first, whose extra time is the start-up. The difference to the bare loop's weights is measured
after one round, because AdamW amplifies rounding errors.

The other systems are skipped where they are not installed:

    pip install pfl==0.6.0 ray==2.55.1
    pip install flwr==1.42.0        # or --no-deps, and then what it asks for, where there is no certifi as new
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from job import JOBS, Job
from one_run import SYSTEMS, Skipped, prepare, run

DEFAULT_JOBS = "small,many,large,round_small,round_large"
DEFAULT = "bare,bare_malloc,worldlm,pfl,flower,lightning"


@dataclass
class Measured:
    """The measurements of one system."""

    walls: list[float] = field(default_factory=list)
    """Wall seconds of every round but each run's first."""
    cpus: list[float] = field(default_factory=list)
    """CPU seconds of the same."""
    firsts: list[tuple[float, float]] = field(default_factory=list)
    """Wall and CPU seconds until the first round's end."""
    peaks: list[float] = field(default_factory=list)
    """Largest memory of each run in MB."""
    difference: float = 0.0
    """Largest difference from the bare loop's weights after one round."""

    def start(self, which: int) -> float:
        """Return the wall (0) or CPU (1) seconds that the first round took more than a later one."""
        steady = statistics.median((self.walls, self.cpus)[which])
        return statistics.median(first[which] for first in self.firsts) - steady


def difference(folder: Path, system: str) -> float:
    """Return the largest difference from the bare loop's weights, rounded either way; NaN where there are none."""
    if not (folder / "bare.npz").exists():
        return float("nan")
    with np.load(folder / "bare.npz") as bare, np.load(folder / f"{system}.npz") as other:
        ways = [
            max(float(np.abs(other[name] - bare[f"{name}{way}"]).max()) for name in other.files if "/" not in name)
            for way in ("", "/stepped")
        ]
    return min(ways)


def measure(job: Job, systems: list[str], processes: int, threads: int, repeats: int) -> dict[str, Measured]:
    """Run all systems in turn, `repeats` times."""
    results: dict[str, Measured] = {system: Measured() for system in systems}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, job)
        for system in repeats * systems:
            if system not in results:
                continue
            try:
                rounds, peak = run(system, folder, processes, threads)
            except Skipped as reason:
                print(f"{system} skipped: {reason}", flush=True)
                del results[system]
                continue
            measured = results[system]
            measured.firsts.append(rounds[0])
            measured.walls += [wall for wall, _ in rounds[1:] or rounds]
            measured.cpus += [cpu for _, cpu in rounds[1:] or rounds]
            measured.peaks.append(peak)
            measured.difference = max(measured.difference, difference(folder, system))
    return results


def table(job: Job, results: dict[str, Measured]) -> Iterator[str]:
    """Yield the lines of a job's table."""
    yield (
        f"{'':20}{'wall s':>8}{'CPU s':>8}{'tokens/s':>10}{'wall/bare':>10}{'CPU/bare':>10}"
        f"{'peak MB':>9}{'start s':>9}{'start CPU':>10}{'differs by':>12}"
    )
    bare = results.get("bare")
    for system, measured in results.items():
        wall, cpu = statistics.median(measured.walls), statistics.median(measured.cpus)
        ratios = [float("nan")] * 2
        if bare is not None:
            ratios = [wall / statistics.median(bare.walls), cpu / statistics.median(bare.cpus)]
        yield (
            f"{system:20}{wall:8.2f}{cpu:8.2f}{job.tokens / wall:10,.0f}{ratios[0]:10.3f}{ratios[1]:10.3f}"
            f"{statistics.median(measured.peaks):9.0f}{measured.start(0):9.1f}{measured.start(1):10.1f}"
            f"{measured.difference:12.1e}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", default=DEFAULT_JOBS, help=f"some of {', '.join(JOBS)}")
    parser.add_argument("--systems", default=DEFAULT, help=f"some of {', '.join(SYSTEMS)}")
    parser.add_argument("--layouts", default="1x2", help="processes x threads, such as 1x2,2x1")
    parser.add_argument("--repeats", type=int, default=1, help="runs of every system")
    for name in ("clients", "steps", "rounds", "blocks", "width"):
        parser.add_argument(f"--{name}", type=int, help="instead of the job's own")
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), help="gpu: of the others, lightning alone can")
    given = parser.parse_args()
    names = ("clients", "steps", "rounds", "blocks", "width", "accelerator")
    changes = {name: getattr(given, name) for name in names}
    for name in given.jobs.split(","):
        job = replace(JOBS[name], **{key: value for key, value in changes.items() if value is not None})
        for layout in given.layouts.split(","):
            processes, threads = map(int, layout.split("x"))
            print(f"\n{name}: {job.clients} clients x {job.steps} steps of {job.batch} x {job.seq} tokens, ", end="")
            print(f"{job.blocks} blocks of width {job.width}; {processes} x {threads} threads", flush=True)
            results = measure(job, given.systems.split(","), processes, threads, given.repeats)
            print("\n".join(table(job, results)), flush=True)


if __name__ == "__main__":
    main()
